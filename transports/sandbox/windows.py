"""Rate windows of a local Intercom, and the headers that report them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from amplitude_intercom.transports.sandbox.refusals import Refusal

HeaderMode = Literal["normal", "absent", "constant", "absurd"]
"""``constant`` repeats the rate headers of the first call, ``absurd`` has impossible numbers."""

WINDOW_S: Final = 10
RESET_LATE_S: Final = 2  # ``X-RateLimit-Reset`` is the window's end plus this (recordings)

_ABSURD_HEADERS: Final[Sequence[Mapping[str, str]]] = [
    {"x-ratelimit-limit": "0", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    {"x-ratelimit-limit": "-5", "x-ratelimit-remaining": "-5", "x-ratelimit-reset": "-5"},
    {"x-ratelimit-limit": "9" * 40, "x-ratelimit-remaining": "1.5", "x-ratelimit-reset": "soon"},
    {"x-ratelimit-remaining": "9999999", "x-ratelimit-reset": "1"},
]


class Windows:
    """Intercom's rate windows of 10 s (rate limiting page; recordings)."""

    def __init__(
        self,
        limit_per_minute: int,
        offset_s: float,
        dice: random.Random,
        remaining: Literal["before", "after"],
        mode: HeaderMode,
    ) -> None:
        """``remaining``: whether ``Remaining`` is the value before its own call, or after it."""
        self.change_limit(limit_per_minute)
        self.throttled = 0
        """Calls that were refused for the rate."""
        self._offset_s = offset_s
        self._dice = dice
        self._counts_itself = remaining == "after"
        self._mode = mode
        self._first_headers: dict[str, str] | None = None
        self._number = -1
        self._used = 0

    def change_limit(self, per_minute: int) -> None:
        """Allow so many calls a minute from now on."""
        self.limit = round(per_minute * WINDOW_S / 60)

    def charge(self, at_s: float, calls: int = 1) -> int:
        """Charge calls to the window of an instant; return the calls left *before* them."""
        number = math.floor((at_s - self._offset_s) / WINDOW_S)
        if number != self._number:
            self._number, self._used = number, 0
        left = max(0, self.limit - self._used)
        self._used += calls
        return left

    def check(self, left: int) -> None:
        """Refuse a call over the limit, in the words of a captured 429 (intercom-node 4.0.0).

        Raises:
            Refusal: no call was left.
        """
        if left <= 0:
            self.throttled += 1
            text = f"Exceeded rate limit of {self.limit} in {WINDOW_S}_seconds"
            raise Refusal(429, "rate_limit_exceeded", text)

    def headers(self, left: int) -> Mapping[str, str]:
        """Return the headers of a call that was just charged, by the mode."""
        if self._mode == "absent":
            return {}
        if self._mode == "normal":
            return self._true_headers(left)
        if self._mode == "absurd":
            return self._dice.choice(_ABSURD_HEADERS)
        if self._first_headers is None:
            self._first_headers = self._true_headers(left)
        return self._first_headers

    def _true_headers(self, left: int) -> dict[str, str]:
        end_s = self._offset_s + (self._number + 1) * WINDOW_S
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(max(0, left - self._counts_itself)),
            "x-ratelimit-reset": str(math.ceil(end_s) + RESET_LATE_S),
        }
