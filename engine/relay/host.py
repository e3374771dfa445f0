"""Whether requests may leave for Amplitude now: pure, fed with outcomes as they come.

Rules
=====
- ``WELL``: requests leave. ``MANY`` failures in a row without a success between them are
  Amplitude's, or the way to it: ``OUTAGE``.
- ``OUTAGE``: one request at a time is a probe, after pauses that double up to ``LONGEST_PAUSE_S``.
  The probes are by turns the oldest request and the newest that has not failed yet, because the
  oldest may fail by themselves, by the hundred. Any answer of Amplitude ends it.
- ``BUSY``: a plain 429 stops all requests until the time that it names.
``failures`` decides whether a failure costs its request an attempt.
"""

from __future__ import annotations

from typing import Final

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.transports.reasons import Reason

MANY: Final = 5
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


class RelayState(Reason):
    """How Amplitude fares for one relay, as far as requests have shown."""

    WELL = ("well", "nothing speaks against it: Amplitude answers, or was not sent anything yet")
    FAILING = (
        "failing",
        "the last request had no answer, or none of Amplitude's: it is tried again, others go on",
        "`status` says why; where Amplitude is well, look at the proxy and at `relay.base_url`",
    )
    OUTAGE = (
        "outage",
        "several requests in a row had no answer, or none of Amplitude's: one at a time is tried"
        " until one has",
        "`status` says why; where Amplitude is well, look at the proxy and at `relay.base_url`",
    )
    BUSY = ("busy", "Amplitude has answered 429: requests pause for as long as it asks")
    INVALID_KEY = (
        "invalid_key",
        "Amplitude refuses an API key: what comes with it waits for hours, all else goes on",
        "correct the key in the client, or `relay.amplitude_api_keys`",
    )


WELL, OUTAGE, BUSY = RelayState.WELL, RelayState.OUTAGE, RelayState.BUSY


class AmplitudeHost:
    """See the module's docstring. Times are seconds of any clock that does not jump."""

    def __init__(self) -> None:
        self._failures = 0
        self._probes = 0
        self._until_s = float("-inf")
        self._busy_until_s = float("-inf")
        self.last_taken_s = float("-inf")
        self.said = ""
        """The last failure; empty after an answer."""

    def state(self, now_s: float) -> RelayState:
        """Return ``WELL``, ``OUTAGE`` or ``BUSY``."""
        # First the 429: Amplitude itself has named that time, while an outage is only concluded.
        if now_s < self._busy_until_s:
            return BUSY
        return OUTAGE if self._failures >= MANY else WELL

    def slots(self, most: int, in_flight: int, now_s: float) -> int:
        """Return the number of requests that may leave now; ``in_flight`` are out already."""
        state = self.state(now_s)
        if state == BUSY or (state == OUTAGE and now_s < self._until_s):
            return 0
        return max(0, (1 if state == OUTAGE else most) - in_flight)

    def begin_departure(self, now_s: float) -> bool:
        """Note that a request leaves; return whether to send the newest, as every second probe."""
        self._probes += self.state(now_s) == OUTAGE
        return self.state(now_s) == OUTAGE and self._probes % 2 == 0

    def next_look_s(self, now_s: float) -> float | None:
        """Return the instant at which more may leave; None: only an outcome changes that."""
        if now_s < self._busy_until_s:
            return self._busy_until_s
        return self._until_s if self._failures >= MANY and now_s < self._until_s else None

    def answered(self, now_s: float, *, took: bool) -> None:
        """Note an answer of Amplitude; ``took``: it has taken the request."""
        self._failures = 0
        self.said = ""
        if took:
            self.last_taken_s = now_s

    def failed(self, said: str, now_s: float, jitter: float) -> None:
        """Note a request without an answer of Amplitude."""
        self._failures += 1
        self.said = said
        beyond = self._failures - MANY + 1
        if beyond > 0:
            pause_s = probe_delay_s(beyond, FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter)
            self._until_s = now_s + pause_s

    def be_busy(self, said: str, until_s: float) -> None:
        """Stop all requests until an instant."""
        self.said = said
        # Several answers of one round may name times: the latest of them holds.
        self._busy_until_s = max(self._busy_until_s, until_s)
