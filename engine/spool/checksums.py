"""The checksums (CRC32) of rows: a flipped byte in the file must not pass for data."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any


def holds(crc: Any, checksum_of: Callable[..., int], *fields: Any) -> bool:
    """Return whether a checksum holds; damaged, a field may not even be of its column's type."""
    try:
        return bool(checksum_of(*fields) == crc)
    except (TypeError, AttributeError, ValueError):
        return False


def letter_checksum(id_: int, reason: str, user_key: str, accepted_at_ms: int, raw: bytes) -> int:
    """Return the CRC32 that a dead letter is kept with."""
    head = b"%d %d %s %s" % (id_, accepted_at_ms, reason.encode(), user_key.encode())
    return zlib.crc32(raw, zlib.crc32(head))


def contact_checksum(workspace: int, field: str, value: str, known: str) -> int:
    """Return the CRC32 that a known contact is kept with."""
    return zlib.crc32("\0".join((str(workspace), field, value, known)).encode())
