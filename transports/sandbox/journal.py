"""The journal of a local Intercom or Amplitude."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class JournalEntry(msgspec.Struct, frozen=True):
    """One call as it came in, and its outcome.

    ``status`` is 0 when no answer was given. ``outcome`` is the effect of the call on the workspace
    (``stored``, ``duplicate``, ``created``, ``updated``, ``read``, …), the error code of a refused
    call, or the kind of the fault that kept it out.
    """

    at_s: float
    method: str
    path: str
    body: bytes
    status: int
    outcome: str
    contact_id: str = ""


def most_calls_in(journal: Sequence[JournalEntry], span_s: float) -> int:
    """Return the most calls that arrived within a span of time, wherever it starts."""
    times = [entry.at_s for entry in journal if entry.outcome != "refuse"]
    first = most = 0
    for last, at_s in enumerate(times):
        while times[first] <= at_s - span_s:
            first += 1
        most = max(most, last - first + 1)
    return most
