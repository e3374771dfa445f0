"""Refused requests, counted by endpoint and reason, and logged at intervals.

After a refusal an SDK drops the events, or tries again for ever, and tells its user nothing. So the
counts are shown (``status``, metrics), and each kind is logged at most once a second.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from amplitude_intercom.transports.reasons import UNTAKEN, RefusalReason
from amplitude_intercom.transports.upload_answers import INVALID_KEY, BadUpload

LOG_EVERY_S: Final = 1.0
MAX_KEYS: Final = 100
"""Unknown API keys that are counted singly; strangers can make up any number."""

OTHER_KEYS: Final = "(others)"
NO_ENDPOINT: Final = "(none)"
"""Instead of an endpoint: the path is not served, or the request is no HTTP."""

_BY_STATUS: Final = {
    404: RefusalReason.UNKNOWN_PATH,
    405: RefusalReason.METHOD,
    408: RefusalReason.SLOW_BODY,
    413: RefusalReason.TOO_LARGE,
    415: RefusalReason.ENCODING,
    429: RefusalReason.THROTTLED,
    499: RefusalReason.GONE,
    500: RefusalReason.INTERNAL,
}
_BY_ERROR: Final = {
    "Invalid JSON request body": RefusalReason.INVALID_JSON,
    "Missing request body": RefusalReason.NO_BODY,
    "Request missing required field": RefusalReason.MISSING_FIELD,
    "Invalid form": RefusalReason.INVALID_FORM,
    "bad_checksum": RefusalReason.BAD_CHECKSUM,
}
_UNAVAILABLE: Final = frozenset({RefusalReason.BUSY, *UNTAKEN})
_log = logging.getLogger(__name__)


def reason_of(refusal: BadUpload) -> RefusalReason:
    """Return the reason of a refusal."""
    if refusal.code == 503:
        reason = refusal.error.rpartition(": ")[2]
        return RefusalReason(reason) if reason in _UNAVAILABLE else RefusalReason.UNAVAILABLE
    if refusal.code != 400:
        return _BY_STATUS.get(refusal.code, RefusalReason.BAD_HTTP)
    if refusal.error.startswith(INVALID_KEY):
        return RefusalReason.UNKNOWN_KEY
    if refusal.events_with_invalid_fields or refusal.events_with_missing_fields:
        return RefusalReason.BAD_EVENTS
    return _BY_ERROR.get(refusal.error, RefusalReason.BAD_HTTP)


class Refusals:
    """Counts of refused requests since the start."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """``now_s``: a clock that only spaces the log's lines."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """By endpoint and reason."""
        self.keys: Counter[str] = Counter()
        """By API key that no sync or relay takes."""
        self._weights: Counter[str] = Counter()
        """By named key: an upper bound of its count. A new key inherits the weight of the one that
        it replaces, so that a key which comes again and again stays named (Space-Saving)."""
        self._now_s = now_s
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def note(self, endpoint: str, refusal: BadUpload) -> None:
        """Count a refusal, and log it unless one of its kind was logged just now."""
        reason = reason_of(refusal)
        if reason is RefusalReason.UNKNOWN_KEY:
            self._note_key(_printable(refusal.error.removeprefix(INVALID_KEY)))
        kind = (endpoint, reason)
        self.counts[kind] += 1
        logged_at_s, logged = self._logged.get(kind, (float("-inf"), 0))
        if self._now_s() - logged_at_s < LOG_EVERY_S:
            return
        self._logged[kind] = (self._now_s(), self.counts[kind])
        more = self.counts[kind] - logged - 1
        _log.warning(
            "refused a request at %s: %s: %d %s%s",
            *(endpoint, reason, refusal.code, _printable(refusal.error)),
            f"; {more} more since the line before" if more else "",
        )

    def _note_key(self, key: str) -> None:
        """Count a key; where there are too many, the one of least weight is no longer named."""
        # A client with a wrong key sends it again and again; a made-up key comes once. So the keys
        # of real clients gain weight, and the made-up ones replace each other.
        self.keys[key] += 1
        self._weights[key] += 1
        if len(self._weights) <= MAX_KEYS:
            return
        lightest = min(
            (other for other in self._weights if other != key), key=self._weights.__getitem__
        )
        self._weights[key] += self._weights.pop(lightest)
        self.keys[OTHER_KEYS] += self.keys.pop(lightest)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
