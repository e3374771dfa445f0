"""A job as a value of the API."""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.log_lines import cut
from amplitude_intercom.engine.spool.jobs import JobRow

MOST_FILTER: Final = 1_024
"""Characters of a filter in an answer: it may name a thousand letters."""


class Job(msgspec.Struct, frozen=True):
    """A job; times in Unix milliseconds. ``counts``: the rows so far by outcome, ``done`` in all.

    ``filter``: its conditions, as the spool keeps them, in JSON; of one over 1,024 characters its
    beginning and its end. ``up_to``: the time of the last failure and the id of the last row that
    is meant.
    """

    id: int
    kind: str
    sync: str
    state: str
    filter: str
    up_to: str
    expected: int
    done: int
    counts: dict[str, int]
    who: str
    note: str
    made_at_ms: int
    ended_at_ms: int | None


def job_of(row: JobRow) -> Job:
    """Return a job as it is shown."""
    return Job(
        row.id,
        row.kind,
        row.sync,
        row.state,
        cut(msgspec.json.encode(row.query).decode(), MOST_FILTER),
        row.up_to,
        row.expected,
        sum(row.counts.values()),
        row.counts,
        row.who,
        row.why,
        row.made_at_ms,
        row.ended_at_ms or None,
    )
