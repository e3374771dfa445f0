"""The API keys that Amplitude refuses now, and the pauses after which they are tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import structlog

from amplitude_intercom.engine.setting_types import short_key

_log = structlog.get_logger(__name__)

FIRST_WAIT_S: Final = 60.0
LONGEST_WAIT_S: Final = 600.0

PATIENCE_MS: Final = 4 * 3_600_000
"""Age of a request at which its events become dead letters if its API key is refused."""

MOST_KEYS: Final = 1_000
"""Refused keys beyond which requests with other refused keys become dead letters at once."""


class RefusedKeys:
    """Refused keys, with Amplitude's answer about each, and how often in a row it came."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self._refusals: Counter[str] = Counter()

    def gives_up(self, api_key: str, waited_ms: int) -> bool:
        """Return whether a request that has waited so long gets no further try."""
        # Anybody who reaches the HTTP source can send keys: only so many of them are remembered.
        is_beyond = api_key not in self.said and len(self.said) >= MOST_KEYS
        return waited_ms >= PATIENCE_MS or is_beyond

    def refuse(self, api_key: str, said: str, *, is_new: bool) -> float:
        """Note a refusal; return the seconds until the key is tried again.

        ``is_new`` is False for further requests of one round: one refusal counts once.
        """
        if api_key not in self.said and len(self.said) < MOST_KEYS:
            self.said[api_key] = said
            text = "Amplitude refuses an API key: what comes with it waits"
            _log.warning(text, api_key=short_key(api_key))
        self._refusals[api_key] += is_new
        doublings = min(self._refusals[api_key] - 1, 8)
        wait_s: float = FIRST_WAIT_S * 2**doublings
        return min(LONGEST_WAIT_S, wait_s)

    def take(self, api_key: str) -> None:
        """Note that Amplitude has taken a request with a key."""
        self._refusals.pop(api_key, None)
        if self.said.pop(api_key, None):
            _log.info("Amplitude takes an API key again", api_key=short_key(api_key))

    def forget(self, api_keys: Iterable[str]) -> None:
        """Forget keys of which nothing waits any more."""
        for api_key in api_keys:
            self.said.pop(api_key, None)
            self._refusals.pop(api_key, None)
