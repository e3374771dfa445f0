"""What a relay keeps of a batch: its request, and in whose line each event stands."""

from __future__ import annotations

import zlib
from typing import Final

from amplitude_intercom.engine.spool.rows import Relayed
from amplitude_intercom.transports.amplitude import BadEvent, Head, read_head
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.originals import FORM, Original, events_of, key_of

ORIGIN: Final = "relay "
"""How the origin of a relay's dead letters begins; the path of their endpoint follows."""

JSON: Final = "application/json"


def relayed_of(batch: Batch, *, drops_oldest: bool) -> Relayed | None:
    """Return what a relay keeps of a batch; None: it came in no request of an SDK."""
    if batch.original is None:
        return None
    key = batch.api_key or ""
    project, known = zlib.crc32(key.encode()), dict[str, int]()
    devices = []
    for head in batch.heads or ():
        name = _device(head)
        line = known.get(name)
        if line is None:
            line = known[name] = zlib.crc32(name.encode("utf-8", "replace"), project)
        devices.append(line)
    if len(known) == 1:
        devices = devices[:1]
    return Relayed(key, len(batch.raws), devices, batch.original, drops_oldest)


def relayed_again(body: bytes, origin: str, *, drops_oldest: bool) -> Relayed | None:
    """Return a dead letter of a relay as a request; None: it cannot be one.

    ``body``, ``origin``: as the relay has kept them.
    """
    path = origin.removeprefix(ORIGIN)
    is_json = body.lstrip()[:1] == b"{"
    original = Original("POST", path, "", JSON if is_json else FORM, body)
    try:
        [event] = events_of(original)
    except ValueError:
        return None
    head, _ = read_head(event)
    batch = Batch([head], [event], api_key=key_of(original), original=original)
    return relayed_of(batch, drops_oldest=drops_oldest)


def _device(head: Head | BadEvent) -> str:
    """Return in whose order an event is: its device's. One that names none is given one that its
    user has (HTTP V2 page); group identifies have neither, and are in one order."""
    if isinstance(head, BadEvent):
        return ""
    return head.device_id or f"user {head.user_id or ''}"
