"""The text of a document with the fewest edits that make it say a wanted table.

Rules
=====
1. A key that is the same stays untouched, with its spelling, its comment and its order.
2. Tables are edited key by key, lists element by element. An element that moves takes its comment
   along. Syncs and relays are known by their name.
3. The library is not trusted: its unedited text must equal the text, and the edited one must read
   as exactly the wanted table. Else the text stays, and the caller offers another way.

Whether the table can be used as settings is not asked here: that reads the files it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import tomlrt

from amplitude_intercom.engine.document.refusals import CannotEdit, NotToml
from amplitude_intercom.engine.document.tables import BOM, Table, canonical, parsed, same

ONE_LINE: Final = 88
"""Characters of a new list beyond which each element has a line of its own."""

SECTION_DEPTH: Final = 2
"""Keys down to which a new table gets a ``[header]``; a deeper one is written in one line."""


def _by_library(text: str, wanted: Table) -> str:
    """Return a text as the library edits it; nothing is certain of it.

    Raises:
        CannotEdit: the library changes more than it should.
    """
    document = tomlrt.loads(text)
    if tomlrt.dumps(document) != text:
        raise CannotEdit("the text is spelled so that an edit would change other lines")
    _edit_table(document, wanted, depth=0)
    return tomlrt.dumps(document)


def edited(text: str, wanted: Table, edit: Callable[[str, Table], str] = _by_library) -> str:
    """Return a text that says the wanted table, edited where it says something else.

    ``edit``: the means, which is not trusted.

    Raises:
        CannotEdit: that is not possible, or not for sure.
    """
    body = text.removeprefix(BOM)
    try:
        if same(parsed(text), wanted):
            return text
        result = text[: len(text) - len(body)] + _ended_alike(edit(body, wanted), body)
        is_exact = same(parsed(result), wanted)
    except (CannotEdit, MemoryError):
        raise
    except NotToml as error:
        raise CannotEdit(str(error)) from None
    except Exception as error:  # a library that has just given up half-way: its text is not used
        raise CannotEdit(f"the text cannot be edited key by key ({type(error).__name__})") from None
    if not is_exact:
        raise CannotEdit("the edited text would differ from the wanted settings")
    return result


def _ended_alike(result: str, body: str) -> str:
    """Return a text without the last newline that the library adds to a last line that stayed."""
    last = body.rpartition("\n")[2]
    has_stayed = last and result.rstrip("\r\n").rpartition("\n")[2] == last
    return result.rstrip("\r\n") if has_stayed else result


def _edit_table(view: Any, wanted: Table, depth: int) -> None:
    for key in [key for key in view if key not in wanted]:
        del view[key]
    for key, value in wanted.items():
        if key not in view:
            view[key] = _new(value, depth + 1, inline=_is_inline(view))
        elif not same(_plain(view[key]), value):
            _edit_key(view, key, value, depth)


def _edit_key(view: Any, key: str, value: Any, depth: int) -> None:
    present = view[key]
    if isinstance(present, dict) and isinstance(value, dict):
        _edit_table(present, value, depth + 1)
    elif isinstance(present, list) and isinstance(value, list) and value and present:
        _edit_list(present, value, depth + 1)
    else:  # an empty list too: its first tables get headers
        view[key] = _new(value, depth + 1, inline=_is_inline(view))


def _edit_list(view: Any, wanted: Sequence[Any], depth: int) -> None:
    """Edit a list: first the elements that stay are put in order, then those between are edited."""
    names, ends = _identities(view), _identities(wanted)
    in_order = {name: index for index, name in enumerate(ends)}
    _sort(view, names, in_order)
    names = _identities(view)
    staying = [name for name in names if name in in_order]
    view_ends = [*(names.index(name) for name in staying), len(view)]
    wanted_ends = [*(in_order[name] for name in staying), len(wanted)]
    for index in reversed(range(len(staying) + 1)):
        first = view_ends[index - 1] + 1 if index else 0
        wanted_first = wanted_ends[index - 1] + 1 if index else 0
        pieces = wanted[wanted_first : wanted_ends[index]]
        _edit_stretch(view, first, view_ends[index], pieces, depth)
        if index and not same(_plain(view[first - 1]), wanted[wanted_first - 1]):
            _edit_table(view[first - 1], wanted[wanted_first - 1], depth)


def _sort(view: Any, names: Sequence[str], in_order: dict[str, int]) -> None:
    """Put the elements that stay into the wanted order; the others stay behind their neighbour."""
    ranks, rank = [], -1
    for name in names:
        rank = in_order.get(name, rank)
        ranks.append(rank)
    if ranks == sorted(ranks):
        return
    by_element = {id(element): rank for element, rank in zip(view, ranks, strict=True)}
    if len(by_element) == len(ranks):
        view.sort(key=lambda element: by_element[id(element)])


def _edit_stretch(view: Any, first: int, end: int, wanted: Sequence[Any], depth: int) -> None:
    """Make the elements from ``first`` to before ``end`` the wanted ones, none of which stays."""
    is_sections = isinstance(view, tomlrt.AoT)
    are_named = any("name" in one for one in [*view[first:end], *wanted]) if is_sections else False
    common = 0 if are_named else min(end - first, len(wanted))
    for index in reversed(range(first + common, end)):
        del view[index]
    for offset, value in enumerate(wanted[:common]):
        _edit_element(view, first + offset, value, depth)
    for offset, value in enumerate(wanted[common:], common):
        view.insert(first + offset, _new(value, depth, inline=not is_sections))


def _edit_element(view: Any, index: int, value: Any, depth: int) -> None:
    present = view[index]
    if isinstance(present, dict) and isinstance(value, dict):
        _edit_table(present, value, depth + 1)
    elif isinstance(present, list) and isinstance(value, list) and value:
        _edit_list(present, value, depth + 1)
    else:
        view[index] = _new(value, depth, inline=True)


def _identities(elements: Sequence[Any]) -> list[str]:
    """Return a text for each element that tells it from the others: the name of a table that has
    one, else all of it; equal ones are numbered.
    """
    seen: Counter[str] = Counter()
    found = []
    for element in elements:
        plain = _plain(element)
        name = plain.get("name") if isinstance(plain, dict) else None
        identity = canonical(plain) if name is None else f"name {canonical(name)}"
        seen[identity] += 1
        found.append(f"{seen[identity]} {identity}")
    return found


def _new(value: Any, depth: int, *, inline: bool) -> Any:
    """Return a value as the library puts it into a document."""
    if isinstance(value, dict):
        if inline or depth > SECTION_DEPTH:
            return value
        inside = {key: _new(inner, depth + 1, inline=False) for key, inner in value.items()}
        return tomlrt.Table.section(inside)
    if not isinstance(value, list) or not value:
        return value
    if depth == 1 and not inline and all(isinstance(element, dict) for element in value):
        return tomlrt.AoT([_new(element, depth, inline=False) for element in value])
    is_long = sum(len(str(element)) + 4 for element in value) > ONE_LINE
    return tomlrt.Array(value, multiline=is_long and not inline)


def _is_inline(view: Any) -> bool:
    return isinstance(view, tomlrt.Table) and view.is_inline


def _plain(value: Any) -> Any:
    """Return a value of the library as ``tomllib`` has it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
