"""The finished hours of exports, against a plain set of hours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.finished_hours import MAX_SPANS, FinishedHours
from amplitude_intercom.transports.amplitude_exports import Span

spans = st.builds(
    lambda first, more: Span(first, first + more), st.integers(470_000, 470_060), st.integers(0, 20)
)


def hours(found: FinishedHours) -> set[int]:
    return {hour for span in found.spans for hour in range(span.first, span.last + 1)}


@given(st.lists(st.tuples(st.booleans(), spans), max_size=12), spans)
def test_hours_are_added_and_taken_like_those_of_a_set(
    changes: list[tuple[bool, Span]], asked: Span
) -> None:
    found, model = FinishedHours(), set[int]()
    for is_added, span in changes:
        some = set(range(span.first, span.last + 1))
        found = found.with_(span) if is_added else found.without(span)
        model = model | some if is_added else model - some
    assert hours(found) == model
    assert all(b.first > a.last + 1 for a, b in zip(found.spans, found.spans[1:], strict=False))
    wanted = set(range(asked.first, asked.last + 1)) - model
    assert hours(FinishedHours(tuple(found.missing(asked)))) == wanted
    assert FinishedHours.read(str(found)) == found


def test_an_unreadable_file_counts_as_no_hours() -> None:
    for text in ("", "nonsense", "20240101T05-20240101T03", "20240101T05"):
        assert not FinishedHours.read(text).spans


def test_the_earliest_spans_are_forgotten_first() -> None:
    found = FinishedHours()
    for n in range(MAX_SPANS + 5):
        found = found.with_(Span(2 * n, 2 * n))
    assert (len(found.spans), found.spans[0].first) == (MAX_SPANS, 10)
