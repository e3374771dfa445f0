"""Keys of requests, so that a request that is sent again is done once.

Rules
=====
1. A key is kept with the request's content and the job that came of it, in the job's own commit.
2. Keys are kept for a day, the latest ``MOST_KEPT`` of them: of more, the first are forgotten.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from amplitude_intercom.engine.spool.meta import Meta

KEPT_MS: Final = 86_400_000
MOST_KEPT: Final = 500
_ROW: Final = "asked_once"


class Once(NamedTuple):
    """A request that is done once: digests of its key and of its content."""

    key: str
    content: str


class AskedJob(msgspec.Struct, frozen=True, array_like=True):
    """A key that is kept, with the id of its job."""

    key: str
    content: str
    job: int
    at_ms: int


_decode: Final = msgspec.json.Decoder(list[AskedJob]).decode


def asked_before(meta: Meta, once: Once, now_ms: int) -> AskedJob | None:
    """Return the earlier request with this key; None: there is none, or it is forgotten."""
    return next((one for one in _kept(meta, now_ms) if one.key == once.key), None)


def keep_asked(meta: Meta, once: Once, job: int, now_ms: int) -> None:
    """Keep a key that is not kept."""
    kept = [*_kept(meta, now_ms), AskedJob(*once, job, now_ms)][-MOST_KEPT:]
    meta.set(_ROW, msgspec.json.encode(kept).decode())


def _kept(meta: Meta, now_ms: int) -> list[AskedJob]:
    try:
        kept = _decode(meta.get(_ROW) or "[]")
    except (msgspec.MsgspecError, UnicodeError):  # damaged: the jobs themselves are not
        return []
    # A clock that was set back makes no key everlasting.
    return [one for one in kept if abs(now_ms - one.at_ms) < KEPT_MS]
