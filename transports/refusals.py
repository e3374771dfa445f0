"""Requests that were refused: counted by door and reason, and logged now and then.

A client that is refused tells nobody: its SDK drops the events, or tries again for ever. So the
counts are shown (``status``, metrics), and each kind is logged at most once a second.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from transports.errors import REFUSED
from transports.uploads import INVALID_KEY, BadUpload

LOG_EVERY_S: Final = 1.0
MAX_KEYS: Final = 100
"""API keys that nobody takes, each counted by itself; strangers can make up any number."""

OTHER_KEYS: Final = "(others)"
NO_DOOR: Final = "(none)"
"""The door of what asks for a path that is not served, or is no HTTP."""

_BY_STATUS: Final = {
    404: "unknown_path",
    405: "method",
    408: "slow_body",
    413: "too_large",
    415: "encoding",
    429: "throttled",
    499: "gone",
    500: "internal",
}
_BY_ERROR: Final = {
    "Invalid JSON request body": "invalid_json",
    "Missing request body": "no_body",
    "Request missing required field": "missing_field",
    "Invalid form": "invalid_form",
    "bad_checksum": "bad_checksum",
}
_UNAVAILABLE: Final = frozenset({"busy", *REFUSED})
_log = logging.getLogger(__name__)


def reason_of(refusal: BadUpload) -> str:
    """Return why a request is refused, as one of a closed set of names."""
    if refusal.code == 503:
        reason = refusal.error.rpartition(": ")[2]
        return reason if reason in _UNAVAILABLE else "unavailable"
    if refusal.code != 400:
        return _BY_STATUS.get(refusal.code, "bad_http")
    if refusal.error.startswith(INVALID_KEY):
        return "unknown_key"
    if refusal.events_with_invalid_fields or refusal.events_with_missing_fields:
        return "bad_events"
    return _BY_ERROR.get(refusal.error, "bad_http")


class Refusals:
    """What was refused since the start."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """``now_s``: a clock that only spaces the log's lines."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """By door and reason."""
        self.keys: Counter[str] = Counter()
        """By API key that nobody takes."""
        self._weights: Counter[str] = Counter()
        """By key that is named: how often it may have come. One that is new begins with what the
        one had that it replaces, so that whoever comes again and again stays named."""
        self._now_s = now_s
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def note(self, door: str, refusal: BadUpload) -> None:
        """Count a refusal, and log it unless one of its kind was logged just now."""
        reason = reason_of(refusal)
        if reason == "unknown_key":
            self._note_key(_printable(refusal.error.removeprefix(INVALID_KEY)))
        kind = (door, reason)
        self.counts[kind] += 1
        logged_at_s, logged = self._logged.get(kind, (float("-inf"), 0))
        if self._now_s() - logged_at_s < LOG_EVERY_S:
            return
        self._logged[kind] = (self._now_s(), self.counts[kind])
        more = self.counts[kind] - logged - 1
        _log.warning(
            "refused a request at %s: %s: %d %s%s",
            *(door, reason, refusal.code, _printable(refusal.error)),
            f"; {more} more since the line before" if more else "",
        )

    def _note_key(self, key: str) -> None:
        """Count a key; where there are too many, the one of least weight is no longer named.

        A client with a wrong key sends again and again; one that is made up, once.
        """
        self.keys[key] += 1
        self._weights[key] += 1
        if len(self._weights) <= MAX_KEYS:
            return
        lightest = min((k for k in self._weights if k != key), key=self._weights.__getitem__)
        self._weights[key] += self._weights.pop(lightest)
        self.keys[OTHER_KEYS] += self.keys.pop(lightest)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
