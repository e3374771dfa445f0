"""``sandbox``: the local Intercom alone, or with a local Amplitude beside it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, get_args, get_type_hints

import msgspec

from amplitude_intercom.engine.addresses import host_and_port, is_loopback
from amplitude_intercom.engine.commands.running import OK, USAGE, Signals, complain
from amplitude_intercom.engine.commands.terminal import count
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude

TYPES: Final = ("string", "integer", "float", "boolean", "date")


def _split(attribute: str) -> tuple[str, str, str]:
    return attribute.partition(":")


async def sandbox(
    listen: str,
    *,
    latency_s: float,
    requests_per_minute: int,
    token: str | None,
    seed: int,
    faults: Sequence[str],
    attributes: Sequence[str],
    amplitude: str | None = None,
) -> int:
    """Serve until a signal; then say how many calls came.

    ``attributes``: custom ones that exist, ``NAME`` or ``NAME:TYPE``; without any, all are taken.
    ``amplitude``: host:port of a local Amplitude.
    """
    parsed = _parsed(faults)
    problem = parsed if isinstance(parsed, str) else _problem(listen, amplitude, attributes)
    if isinstance(parsed, str) or problem:
        return complain(problem, USAGE)
    local = Sandbox(
        seed=seed,
        limit_per_minute=requests_per_minute,
        access_token=token,
        latency_s=latency_s,
        faults=parsed,
        attributes={name: kind or "string" for name, _, kind in map(_split, attributes)},
        open_attributes=not attributes,
    )
    signals = Signals()
    taken_in = LocalAmplitude(seed=seed, latency_s=latency_s)
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(serve(local, *host_and_port(listen)))
        except OSError as error:
            return complain(f"--listen: {listen}: {error.strerror}", USAGE)
        also = ""
        if amplitude is not None:
            serving = serve_amplitude(taken_in, *host_and_port(amplitude))
            try:
                also = f", a local Amplitude at {await stack.enter_async_context(serving)}"
            except OSError as error:
                return complain(f"--amplitude: {amplitude}: {error.strerror}", USAGE)
        print(f"a local Intercom at {url}{also}; stop it with Ctrl-C", file=sys.stderr)
        await signals.stop.wait()
    print(f"{len(local.journal)} calls, {len(local.events)} events kept", file=sys.stderr)
    if amplitude is not None:
        calls, kept = count(len(taken_in.journal), "call"), count(len(taken_in.events), "event")
        print(f"Amplitude: {calls}, {kept} kept", file=sys.stderr)
    return OK


def _parsed(faults: Sequence[str]) -> list[Fault] | str:
    """Return the faults of ``--fault``, or the error message for one of them."""
    try:
        return [msgspec.json.decode(fault, type=Fault) for fault in faults]
    except msgspec.MsgspecError as error:
        kinds = ", ".join(get_args(get_type_hints(Fault)["kind"]))
        hint = f"; the kinds are {kinds}" if "`$.kind`" in str(error) else ""
        return f"--fault: {error}{hint}"


def _problem(listen: str, amplitude: str | None, attributes: Sequence[str]) -> str:
    """Return the error message for a wrong option; empty: none is wrong."""
    for option, address in (("--listen", listen), ("--amplitude", amplitude)):
        if address is not None and not _is_here(address):
            return f"{option}: {address}: expected host:port of this machine alone"
    for attribute in attributes:
        if _split(attribute)[2] not in ("", *TYPES):
            return f"--attribute: {attribute}: the types are {', '.join(TYPES)}"
    return ""


def _is_here(address: str) -> bool:
    """Whether an address is a port of this machine that nobody else reaches."""
    return re.fullmatch(r".+:[0-9]{1,5}", address) is not None and is_loopback(address)
