"""Whatever the file looks like: an edit changes what was meant, and leaves all else alone."""

from __future__ import annotations

import tomllib
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.document.editing import edited
from amplitude_intercom.engine.document.tables import same
from support.settings_texts import Table, Writer, changed, random_table

RANDOM = st.integers(0, 2**32).map(Random)
GONE = object()


def read(text: str) -> Table:
    return tomllib.loads(text.removeprefix("\ufeff"))


def at(table: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path, on which syncs are known by their names."""
    for key in path:
        if isinstance(table, list):
            table = next((one for one in table if one["name"] == key), GONE)
        else:
            table = table.get(key, GONE) if isinstance(table, dict) else GONE
    return table


@settings(max_examples=300, deadline=None)
@given(RANDOM)
def test_an_edited_text_says_what_is_wanted_and_keeps_the_comments_of_all_else(
    random: Random,
) -> None:
    table = random_table(random)
    writer = Writer(random)
    text = writer.text(table)
    assert same(read(text), table)
    wanted = changed(random, table)
    result = edited(text, wanted)
    assert same(read(result), wanted)
    kept = [
        comment
        for path, said in writer.comments.items()
        for comment in said
        if path[0] != "sync" or same(at(table, path), at(wanted, path))
    ]
    assert [comment for comment in kept if result.count(comment) != 1] == []


@settings(max_examples=200, deadline=None)
@given(RANDOM)
def test_a_text_that_says_what_is_wanted_stays_byte_for_byte(random: Random) -> None:
    table = random_table(random)
    text = Writer(random).text(table)
    assert edited(text, table) == text


@settings(max_examples=200, deadline=None)
@given(RANDOM)
def test_a_toggle_changes_one_line(random: Random) -> None:
    table = random_table(random)
    table["sync"].append({"name": "z", "enabled": True, "intercom": {"access_token": "t"}})
    text = Writer(random).text(table)
    table["sync"][-1]["enabled"] = False
    before, after = text.split("\n"), edited(text, table).split("\n")
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


@settings(max_examples=200, deadline=None)
@given(RANDOM)
def test_an_element_of_a_list_takes_its_comment_along(random: Random) -> None:
    names = [f"p{number}" for number in range(random.randint(1, 6))]
    lines = "".join(f'  "{name}",  # of {name}\n' for name in names)
    text = f"[[sync]]\nname = 'a'\nusers.properties = [\n{lines}]\n"
    wanted = random.sample(names, random.randint(1, len(names)))
    for number in range(random.randint(0, 3)):
        wanted.insert(random.randint(0, len(wanted)), f"new{number}")
    result = edited(text, {"sync": [{"name": "a", "users": {"properties": wanted}}]})
    said = [line.strip() for line in result.splitlines() if "# of" in line]
    stay = [name for name in wanted if name in names]
    assert [line for line in said if line in [f'"{n}",  # of {n}' for n in stay]] == [
        f'"{name}",  # of {name}' for name in stay
    ]
