"""Tables of settings as ``tomllib`` reads them: paths, equality and a canonical text."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from amplitude_intercom.engine.document.refusals import NoSuchSync, NotToml
from amplitude_intercom.engine.toml_text import read_toml

Table = dict[str, Any]
Path = tuple[str | int, ...]
"""The keys and indices that lead to a value."""

BOM = "\ufeff"


MOST_LEVELS: Final = 60
"""Tables and lists inside each other; settings have some seven."""


def parsed(text: str) -> Table:
    """Return the table of a text, which may begin with a byte order mark.

    Raises:
        NotToml: it is not TOML, and the message names the line; or it is nested too deeply.
    """
    try:
        table = read_toml(text.removeprefix(BOM))
    except tomllib.TOMLDecodeError as error:
        raise NotToml(f"not TOML: {error}") from None
    except (ValueError, RecursionError) as error:  # digits or depth without end
        raise NotToml(f"not TOML: {str(error).partition(':')[0]}") from None
    refuse_deep(table)
    return table


def refuse_deep(value: Any) -> None:
    """Refuse a value that functions which call themselves cannot go through.

    Raises:
        NotToml: it is nested too deeply.
    """
    level = [value]
    for _ in range(MOST_LEVELS):
        if not level:
            return
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for held in inner for one in held if isinstance(one, dict | list)]
    raise NotToml(f"nested more than {MOST_LEVELS} levels deep")


def written(path: Path) -> str:
    """Return a path as messages have it: ``sync[0].intercom.access_token``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def syncs_in(table: Table) -> list[Any]:
    """Return the ``[[sync]]`` tables of settings, which need not be right."""
    syncs = table.get("sync", [])
    return syncs if isinstance(syncs, list) else []


def index_of_sync(table: Table, name: str) -> int:
    """Return the index of the ``[[sync]]`` of a name.

    Raises:
        NoSuchSync: there is none.
    """
    for index, sync in enumerate(syncs_in(table)):
        if isinstance(sync, dict) and sync.get("name") == name:
            return index
    raise NoSuchSync(f"the settings have no sync `{name}`")


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each value that is neither a table nor a list, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def canonical(value: Any) -> str:
    """Return a text that two values share if and only if they are the same to TOML.

    ``1``, ``1.0`` and ``true`` differ; the order of keys does not matter; each ``nan`` is the same.
    """
    if isinstance(value, dict):
        pairs = (f"{key!r}:{canonical(inner)}" for key, inner in sorted(value.items()))
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    return f"{type(value).__name__}:{value!r}"


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same to TOML."""
    return canonical(one) == canonical(other)


def digest(content: bytes) -> str:
    """Return the version of a text: the SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
