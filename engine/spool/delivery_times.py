"""How soon deliveries came, as counts by the minute: at the first attempt or later, and how late.

Lateness, from accepted to settled, is counted in buckets, each a quarter wider than the one before:
from 50 ms to two weeks, so that a quantile of any span of time is true to a quarter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from amplitude_intercom.engine.envelope import Record

FIRST_ATTEMPT: Final = "first_attempt"
AFTER_RETRY: Final = "after_retry"
LATE: Final = "late:"
"""Begins the names of buckets; a number follows."""

BOUNDS_S: Final = tuple(0.05 * 1.25**step for step in range(77))
"""The upper bounds of the buckets, in seconds; the last one, without a bound, follows."""


def times_of(records: Iterable[Record], now_ms: int) -> Counter[str]:
    """Return the counts of records that are settled as delivered now."""
    counts: Counter[str] = Counter()
    for record in records:
        failed = record.attempts or record.first_failed_at_ms
        counts[AFTER_RETRY if failed else FIRST_ATTEMPT] += 1
        late_s = (now_ms - record.accepted_at_ms) / 1000
        counts[f"{LATE}{bisect_left(BOUNDS_S, late_s)}"] += 1
    return counts


def lateness_s(counts: Mapping[str, int], share: float) -> float | None:
    """Return the seconds in which a ``share`` of deliveries came, at most; None: there were none.

    The bound of a bucket; of the last one, without a bound, that of the one before.
    """
    buckets = sorted(
        (int(name.removeprefix(LATE)), count)
        for name, count in counts.items()
        if name.startswith(LATE)
    )
    left = share * sum(count for _, count in buckets)
    for bucket, count in buckets:
        left -= count
        if left <= 0:
            return BOUNDS_S[min(bucket, len(BOUNDS_S) - 1)]
    return None
