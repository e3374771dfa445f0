"""A job as a value of the API."""

from __future__ import annotations

import msgspec

from amplitude_intercom.engine.spool.jobs import JobRow


class Job(msgspec.Struct, frozen=True):
    """A job; times in Unix milliseconds. ``counts``: the rows so far by outcome, ``done`` in all.

    ``filter``: its conditions, as the spool keeps them, in JSON. ``up_to``: the time of the last
    failure and the id of the last row that is meant.
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
        msgspec.json.encode(row.query).decode(),
        row.up_to,
        row.expected,
        sum(row.counts.values()),
        row.counts,
        row.who,
        row.why,
        row.made_at_ms,
        row.ended_at_ms or None,
    )
