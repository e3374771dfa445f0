"""``sandbox``: the local Intercom alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Final, get_args, get_type_hints

import msgspec

from amplitude_intercom.engine.addresses import host_and_port, is_loopback
from amplitude_intercom.engine.commands.running import OK, USAGE, Signals, complain
from amplitude_intercom.transports.sandbox import Fault, Sandbox, serve

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
) -> int:
    """Serve until a signal; then say how many calls came.

    ``attributes``: custom ones that exist, ``NAME`` or ``NAME:TYPE``; without any, all are taken.
    """
    try:
        parsed = [msgspec.json.decode(fault, type=Fault) for fault in faults]
    except msgspec.MsgspecError as error:
        kinds = ", ".join(get_args(get_type_hints(Fault)["kind"]))
        hint = f"; the kinds are {kinds}" if "`$.kind`" in str(error) else ""
        return complain(f"--fault: {error}{hint}", USAGE)
    if not re.fullmatch(r".+:[0-9]{1,5}", listen) or not is_loopback(listen):
        return complain(f"--listen: {listen}: expected host:port of this machine alone", USAGE)
    local = Sandbox(
        seed=seed,
        limit_per_minute=requests_per_minute,
        access_token=token,
        latency_s=latency_s,
        faults=parsed,
        attributes={name: kind or "string" for name, _, kind in map(_split, attributes)},
        open_attributes=not attributes,
    )
    wrong = [a for a in attributes if _split(a)[2] not in ("", *TYPES)]
    if wrong:
        return complain(f"--attribute: {wrong[0]}: the types are {', '.join(TYPES)}", USAGE)
    host, port = host_and_port(listen)
    signals = Signals()
    try:
        async with serve(local, host, port) as url:
            print(f"a local Intercom at {url}; stop it with Ctrl-C", file=sys.stderr)
            await signals.stop.wait()
    except OSError as error:
        return complain(f"--listen: {listen}: {error.strerror}", USAGE)
    print(f"{len(local.journal)} calls, {len(local.events)} events kept", file=sys.stderr)
    return OK
