"""Text from outside is printed as text, whatever is in it."""

from __future__ import annotations

import contextlib
import io
import json
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.terminal import json_shown, print_table
from amplitude_intercom.engine.wording import duration, shown

ANY_TEXT = st.text(st.characters(), max_size=300) | st.text("[]/\\\x1b\x07\n\rab ", max_size=50)
NASTY = (
    "[/bold]\\a",
    "\x1b[31mred",
    "a\nb\r",
    "\ud800",
    "\u202egnp.exe",
    ":smile:",
    "[link=x]",
    "\\",
)


def is_text(line: str) -> bool:
    return line.isprintable() and not any(unicodedata.category(c) == "Cs" for c in line)


@given(ANY_TEXT, st.integers(1, 80))
def test_every_shown_text_is_one_printable_line_of_a_bounded_length(text: str, most: int) -> None:
    line = shown(text, most)
    assert is_text(line)
    assert len(line) <= most


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=80))
def test_text_that_can_be_seen_is_shown_as_it_is(text: str) -> None:
    assert shown(text, 80) == text


@given(st.lists(ANY_TEXT, min_size=2, max_size=2))
@example(list(NASTY[:2]))
@example(list(NASTY[2:4]))
@example(list(NASTY[4:6]))
@example(list(NASTY[6:]))
def test_a_table_holds_its_cells_and_nothing_in_them_is_obeyed(cells: list[str]) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_table([cells], ("one", "two"))
    lines = out.getvalue().splitlines()
    assert all(map(is_text, lines))
    seen = "".join(lines[1:]).replace(" ", "")
    for cell in cells:
        for word in shown(cell)[:20].split():
            assert word[:3] in seen


@given(st.dictionaries(ANY_TEXT, ANY_TEXT))
def test_json_says_the_same_without_control_characters(value: dict[str, str]) -> None:
    text = json_shown(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert not any(unicodedata.category(c) == "Cc" for c in text)


def test_time_spans_are_said_in_their_largest_unit() -> None:
    spans = [0.1234, 1.5, 42, 150, 7_200, 200_000]
    assert [*map(duration, spans)] == ["0.123 s", "1.5 s", "42 s", "2 min", "2 h", "2 days"]
