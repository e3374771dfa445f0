"""Values in words: one printable line, whatever they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.wording import duration, shown
from support.texts import ANY_TEXT, is_text


@given(ANY_TEXT, st.integers(1, 80))
def test_every_shown_text_is_one_printable_line_of_a_bounded_length(text: str, most: int) -> None:
    line = shown(text, most)
    assert is_text(line)
    assert len(line) <= most


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=80))
def test_text_that_can_be_seen_is_shown_as_it_is(text: str) -> None:
    assert shown(text, 80) == text


def test_time_spans_are_said_in_their_largest_unit() -> None:
    spans = [0.1234, 1.5, 42, 150, 7_200, 200_000]
    assert [*map(duration, spans)] == ["0.123 s", "1.5 s", "42 s", "2 min", "2 h", "2 days"]
