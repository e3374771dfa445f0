"""Reads of minutes and hours: whatever has become hours meanwhile, the sum stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.spool.minute_reads import HOUR, counted
from support.spools import opened

START = 28_000_020
NAMES = st.sampled_from(["received", "late:3", "call:POST /events:202"])
PARTS = st.dictionaries(st.tuples(st.integers(0, 300), NAMES), st.integers(1, 9), max_size=30)


@settings(max_examples=40, deadline=None)
@given(PARTS, st.integers(0, 240), st.integers(1, 240), st.integers(0, 4))
def test_a_span_has_what_was_counted_in_it_and_nothing_of_others(
    parts: dict[tuple[int, str], int], first: int, length: int, hours: int
) -> None:
    with TemporaryDirectory() as folder:
        store = opened(Path(folder) / "spool.db")
        store.begin()
        for (minute, name), value in parts.items():
            for taker in (1, 2):
                store.db.execute(
                    "INSERT INTO minutes (span, minute, taker, name, value) VALUES (1, ?, ?, ?, ?)",
                    (START + minute, taker, name, value * taker),
                )
        merged_to = START // HOUR * HOUR + hours * HOUR
        store.accounts.make_hours(merged_to, 1_000)
        begin, end = START + first, START + first + length
        found = counted(store, 2, begin, end)
        store.rollback()
        store.close()
    expected: dict[int, Counter[str]] = {}
    for (minute, name), value in parts.items():
        at = START + minute
        at = at // HOUR * HOUR if at < merged_to else at
        if begin <= at < end:
            expected.setdefault(at, Counter())[name] += 2 * value
    assert found == expected
