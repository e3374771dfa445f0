"""How soon deliveries came, as counts: a quantile is true to the width of a bucket."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.spool.delivery_times import (
    AFTER_RETRY,
    BOUNDS_S,
    FIRST_ATTEMPT,
    lateness_s,
    times_of,
)

NOW_MS = 1_700_000_000_000


def record(late_ms: int, **more: Any) -> Record:
    return Record(1, Kind.EVENT, "ann", NOW_MS - late_ms, b"{}", **more)


@given(st.lists(st.integers(0, 1_100_000_000), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_is_at_most_a_quarter_too_long(late_ms: list[int], share: float) -> None:
    counts = times_of([record(ms) for ms in late_ms], NOW_MS)
    found = lateness_s(counts, share)
    at = max(0, -(-share * len(late_ms) // 1) - 1)
    exact_s = sorted(late_ms)[int(at)] / 1000
    assert found is not None
    assert exact_s <= found * (1 + 1e-9)
    assert found <= max(BOUNDS_S[0], exact_s * 1.25 * (1 + 1e-9))


def test_what_has_failed_before_came_after_a_retry() -> None:
    records = [record(10), record(10, attempts=1), record(10, first_failed_at_ms=NOW_MS)]
    counts = times_of(records, NOW_MS)
    assert (counts[FIRST_ATTEMPT], counts[AFTER_RETRY]) == (1, 2)


def test_without_a_delivery_there_is_no_lateness() -> None:
    assert lateness_s({"received": 5}, 0.95) is None


def test_beyond_the_last_bound_its_value_is_said() -> None:
    counts = times_of([record(10**12), record(-5_000)], NOW_MS)  # a clock was set back
    assert lateness_s(counts, 1.0) == BOUNDS_S[-1]
    assert lateness_s(counts, 0.5) == BOUNDS_S[0]
