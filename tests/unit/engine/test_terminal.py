"""Text from outside is printed as text, whatever is in it."""

from __future__ import annotations

import contextlib
import io
import json
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.terminal import json_shown, print_table
from amplitude_intercom.engine.wording import shown
from support.texts import ANY_TEXT, is_text

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
