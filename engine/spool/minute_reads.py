"""Reads of what was counted by the minute and by the hour, for charts.

Rules
=====
1. The sum over a span of time is the change of the counters in it, through any kill: both were
   written by the same commits.
2. A span is read by one look-up for each of its minutes and hours, whatever other takers have
   counted meanwhile.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from amplitude_intercom.engine.spool.tables import Tables

HOUR: Final = 60

_ROWS: Final = (
    "WITH RECURSIVE times(at) AS"
    " (SELECT ? UNION ALL SELECT at + ? FROM times WHERE at + ? < ?)"
    " SELECT at, name, value FROM times JOIN minutes"
    " ON span = ? AND minute = at AND taker = ?"
)


def counted(tables: Tables, taker: int, start: int, end: int) -> dict[int, Counter[str]]:
    """Return the counts of a taker from one minute since 1970 to before another, by minute.

    Older ones have become hours, which stand at their first minute; one that begins before
    ``start`` is left out.
    """
    found: dict[int, Counter[str]] = {}
    for span in (1, HOUR):
        first = -(-start // span) * span
        if first < end:
            rows = tables.db.execute(_ROWS, (first, span, span, end, span, taker))
            for at, name, value in rows:
                found.setdefault(at, Counter())[name] += value
    return found
