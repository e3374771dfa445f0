"""The failures of each request, and the attempts that they cost it. Pure.

Rules
=====
- A failure is charged to a request only where Amplitude has taken others since its last one.
- One event of a request may be the reason for all its failures, hence after ``TOGETHER`` of them
  the request goes in pieces, twice as many each time.
- An event is given up after ``MOST_TRIES`` charged failures of its request, of which it was alone
  in at least ``ALONE_TRIES``. An event that never was alone is never given up.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import msgspec

from amplitude_intercom.engine.relay.parts import RequestPart

MOST_TRIES: Final = 10
ALONE_TRIES: Final = 3
TOGETHER: Final = 3

MOST_HALVINGS: Final = 11
"""After as many, two thousand events go one by one."""

MOST_REQUESTS: Final = 10_000
"""Requests whose failures are remembered."""


class FailureRecord(msgspec.Struct):
    """The failures of one request.

    ``charges``: charged failures; ``alone``: those of an event that was sent alone, by its index.
    ``throttles``: answers that throttled devices of the request.
    """

    last_s: float = math.inf
    charges: int = 0
    alone: Counter[int] = msgspec.field(default_factory=Counter)
    throttles: int = 0


class RequestFailures:
    """See the module's docstring. ``last_taken_s``: when Amplitude has taken a request last."""

    def __init__(self) -> None:
        self._records: dict[int, FailureRecord] = {}

    def __contains__(self, request_id: object) -> bool:
        """Return whether a request has failed."""
        return request_id in self._records

    def charges(self, request_id: int) -> int:
        """Return the charged failures of a request."""
        record = self._records.get(request_id)
        return 0 if record is None else record.charges

    def pieces(self, request_id: int) -> int:
        """Return the number of parts in which a request goes."""
        record = self._records.get(request_id)
        if record is None:
            return 1
        # Throttling splits a request too: a device may have more events in it than Amplitude takes
        # of one device at once, and then no waiting helps.
        halvings = max(record.throttles, record.charges - TOGETHER + 1, 0)
        return 1 << min(halvings, MOST_HALVINGS)

    def note(self, request_id: int, now_s: float, last_taken_s: float) -> bool:
        """Note a failure; return whether it is the request's own, and not Amplitude's."""
        record = self._record(request_id)
        is_own = last_taken_s > record.last_s
        record.last_s = now_s
        return is_own

    def charge(self, part: RequestPart, now_s: float, last_taken_s: float) -> bool:
        """Note a failure of a part, charged if it is its own; return whether to give it up.

        A part that is given up has one event.
        """
        if not self.note(part.request.id, now_s, last_taken_s):
            return False
        record = self._record(part.request.id)
        record.charges += 1
        if len(part.indexes) > 1:
            return False
        [index] = part.indexes
        record.alone[index] += 1
        return record.charges >= MOST_TRIES and record.alone[index] >= ALONE_TRIES

    def note_throttled(self, request_id: int) -> None:
        """Note an answer that throttled devices of a request."""
        self._record(request_id).throttles += 1

    def forget(self, request_id: int) -> None:
        """Forget a request of which nothing is left."""
        self._records.pop(request_id, None)

    def _record(self, request_id: int) -> FailureRecord:
        # Requests that were dropped from the spool are never answered again, so that nothing
        # forgets them: without this bound they would pile up.
        if len(self._records) > MOST_REQUESTS:
            self._records.pop(next(iter(self._records)))
        return self._records.setdefault(request_id, FailureRecord())
