"""The form in which a relay keeps a batch: its request, and the number of each event's device."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Final

from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.engine.spool.relay_requests import LostEvent, Relayed
from amplitude_intercom.engine.spool.rows import LONGEST_TYPE
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import decode_head, legible, read_head
from amplitude_intercom.transports.contract import Batch, Original
from amplitude_intercom.transports.originals import FORM, events_of, key_of, single_events

ORIGIN: Final = "relay "
"""How the origin of a relay's dead letters begins; the path of their endpoint follows."""

JSON: Final = "application/json"


def relayed_of(batch: Batch, *, drops_oldest: bool) -> Relayed | None:
    """Return a batch as a relay keeps it; None: it came in no request of an SDK."""
    if batch.original is None:
        return None
    key = batch.api_key or ""
    project, known = zlib.crc32(key.encode()), dict[str, int]()
    devices = []
    for head in batch.heads or map(decode_head, batch.raws):
        name = _device(head)
        number = known.get(name)
        if number is None:
            number = known[name] = zlib.crc32(name.encode("utf-8", "replace"), project)
        devices.append(number)
    if len(known) == 1:
        devices = devices[:1]
    return Relayed(key, len(batch.raws), devices, batch.original, drops_oldest)


def lost_events(original: Original | None, lost: Mapping[int, Failure]) -> list[LostEvent]:
    """Return events that Amplitude will not have, each as it can be sent again.

    ``original``: the request, where it can be read.
    """
    if original is None:
        return [LostEvent(index, why, b"", ORIGIN) for index, why in lost.items()]
    origin = f"{ORIGIN}{original.path}"
    try:
        found = single_events(original, list(lost))
    except Exception as fault:  # then all that they came in is kept, once
        internal_failure(fault, path=original.path)
        bodies = chain([original.body], repeat(b""))
        return [
            LostEvent(index, why, body, origin)
            for (index, why), body in zip(lost.items(), bodies, strict=False)
        ]
    return [
        LostEvent(index, why, body, origin, *_about(event))
        for (index, why), (body, event) in zip(lost.items(), found, strict=True)
    ]


def _about(event: bytes) -> tuple[str, str]:
    """Return the user and the type of an event, as far as a database can have them."""
    head = legible(event)
    user, kind = head.user_id or head.device_id or "", (head.event_type or "")[:LONGEST_TYPE]
    return user.encode(errors="replace").decode(), kind.encode(errors="replace").decode()


def relayed_again(letter: DeadLetter, *, drops_oldest: bool) -> Relayed | None:
    """Return a dead letter of a relay as a request; None: it cannot be one."""
    path, body = letter.origin.removeprefix(ORIGIN), letter.raw
    is_json = body.lstrip()[:1] == b"{"
    original = Original("POST", path, "", JSON if is_json else FORM, body)
    try:
        [event] = events_of(original)
    except ValueError:
        return None
    head, _ = read_head(event)
    batch = Batch([head], [event], api_key=key_of(original), original=original)
    relayed = relayed_of(batch, drops_oldest=drops_oldest)
    if relayed is not None:
        relayed.accepted_at_ms = letter.accepted_at_ms
    return relayed


def _device(head: Head | BadEvent) -> str:
    """Return the name of an event's order: its device.

    An event without one is given a device of its user (HTTP V2 page); group identifies have
    neither, and share one order."""
    if isinstance(head, BadEvent):
        return ""
    return head.device_id or f"user {head.user_id or ''}"
