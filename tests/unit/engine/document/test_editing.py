"""Edits of a settings text: the fewest lines, and nothing that is not exactly what is wanted."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from amplitude_intercom.engine.document.editing import edited
from amplitude_intercom.engine.document.refusals import CannotEdit

TEXT = """\
# Settings.
data_dir = "data"

[[sync]]
name = "a"   # the first
enabled = true
[sync.intercom]
access_token = 'env:A' # kept elsewhere
[sync.events]
select = [
  { types = ["Signed Up"] },  # new people
  # those who pay:
  { types = ["Paid"], where = [{ property = "event.amount", op = ">", values = [1] }] },
]

[log]
level = "info"

# The second.
[[sync]]
name = "b"
intercom.access_token = "literal"
"""


def after(change: str, text: str = TEXT) -> str:
    """Return the text after a change of its table, as Python writes it."""
    table = tomllib.loads(text)
    exec(change, {"table": table, "syncs": table["sync"]})
    return edited(text, table)


EDITS = {
    "syncs[0]['enabled'] = False": ("enabled = true", "enabled = false"),
    "del syncs[0]['enabled']": ("enabled = true\n", ""),
    "syncs[0]['intercom']['region'] = 'eu'": (
        "elsewhere\n",
        'elsewhere\nregion = "eu"\n',
    ),
    "syncs[1]['intercom']['region'] = 'eu'": (
        '"literal"\n',
        '"literal"\nintercom.region = "eu"\n',
    ),
    "syncs[0]['events']['select'].pop(0)": ('  { types = ["Signed Up"] },  # new people\n', ""),
    "syncs[0]['events']['select'].insert(0, {'types': ['X']})": (
        '  { types = ["Signed Up"] },',
        '  { types = ["X"] },\n  { types = ["Signed Up"] },',
    ),
    "syncs[0]['events']['select'][1]['where'][0]['values'].append(2)": ("[1]", "[1, 2]"),
    "syncs[0]['events']['select'][0]['types'][0] = 'Joined'": ('"Signed Up"', '"Joined"'),
    "syncs[0]['events']['select'].reverse()": (
        TEXT[TEXT.index('  { types = ["Sig') : TEXT.index("]\n\n[log]")],
        """\
  # those who pay:
  { types = ["Paid"], where = [{ property = "event.amount", op = ">", values = [1] }] },
  { types = ["Signed Up"] },  # new people
""",
    ),
    "syncs[0]['events']['money'] = {'price': 'currency'}": (
        "]\n\n[log]",
        ']\nmoney = { price = "currency" }\n\n[log]',
    ),
    "syncs.pop(1)": (TEXT[TEXT.index("\n# The second") :], ""),
    "syncs.append({'name': 'c', 'intercom': {'access_token': 'env:C'}})": (
        'access_token = "literal"\n',
        'access_token = "literal"\n\n[[sync]]\nname = "c"\n\n[sync.intercom]\n'
        'access_token = "env:C"\n',
    ),
}


@pytest.mark.parametrize("change", EDITS)
def test_an_edit_changes_nothing_else(change: str) -> None:
    old, new = EDITS[change]
    assert TEXT.count(old) == 1
    assert after(change) == TEXT.replace(old, new)


@pytest.mark.parametrize("change", EDITS)
def test_line_ends_and_byte_order_mark_stay(change: str) -> None:
    text = "\ufeff" + TEXT.replace("\n", "\r\n").rstrip("\r\n")
    table = tomllib.loads(TEXT)
    exec(change, {"table": table, "syncs": table["sync"]})
    result = edited(text, table)
    assert result.startswith("\ufeff# Settings.\r\n")
    assert "\n" not in result.replace("\r\n", "")


def test_the_last_sync_goes_and_a_first_one_comes() -> None:
    none = after("syncs.clear()")
    assert tomllib.loads(none)["sync"] == []
    assert none.startswith('# Settings.\ndata_dir = "data"\n')
    one = after("syncs.append({'name': 'c', 'intercom': {'access_token': 'env:C'}})", none)
    assert '[[sync]]\nname = "c"\n' in one
    assert "sync = []" not in one


def test_a_file_without_a_sync_gets_one() -> None:
    assert edited('[log]\nlevel = "info"', {"log": {"level": "info"}, "sync": [{"name": "c"}]}) == (
        '[log]\nlevel = "info"\n\n[[sync]]\nname = "c"\n'
    )


@pytest.mark.parametrize(("now", "wanted"), [(1, True), (1, 1.0), (True, 1), (0.0, False)])
def test_values_that_python_takes_for_equal_are_edited(now: Any, wanted: Any) -> None:
    text = f"[[sync]]\nname = 'a'\nx = {str(now).lower()}\n"
    (sync,) = tomllib.loads(edited(text, {"sync": [{"name": "a", "x": wanted}]}))["sync"]
    assert (sync["x"], type(sync["x"])) == (wanted, type(wanted))


@pytest.mark.parametrize("value", [None, object(), {1: 2}, {"a": None}, [None], b"x", 1j])
def test_a_value_that_toml_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(CannotEdit):
        edited(TEXT, {**tomllib.loads(TEXT), "sync": [{"name": "a", "x": value}]})


def test_a_text_that_is_not_toml_is_refused() -> None:
    for text in ("a = ", "[[sync]]\nname = 'a\n", f"a = {'[' * 100_000}"):
        with pytest.raises(CannotEdit):
            edited(text, {"sync": []})


@pytest.mark.parametrize(
    "result",
    [
        TEXT,
        TEXT.replace("enabled = true", "enabled = 0"),
        TEXT.replace("enabled = true", "enabled = false").replace("info", "debug"),
        "",
        "not TOML",
    ],
)
def test_a_means_of_editing_that_does_something_else_is_not_trusted(result: str) -> None:
    wanted = tomllib.loads(TEXT.replace("enabled = true", "enabled = false"))
    with pytest.raises(CannotEdit):
        edited(TEXT, wanted, lambda *_: result)


def test_a_means_of_editing_that_fails_is_no_fault() -> None:
    def fail(*_: object) -> str:
        raise AssertionError("inside the library")

    with pytest.raises(CannotEdit, match="AssertionError"):
        edited(TEXT, {"sync": []}, fail)
