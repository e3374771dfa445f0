"""Amplitude's user property operations, read out of a payload.

The rules (Amplitude's Identify API and SDK pages):

- The operations of one payload are applied in the order ``ORDER``, whatever the order of its keys.
- Plain keys act like ``$set``; where a payload has both for one property, the ``$set`` wins.
- ``$clearAll`` takes the text ``"-"``, every other operation an object ``{property: argument}``.
- Null in ``$set``, ``$setOnce`` and plain keys says nothing, as everywhere (``rules.paths``): the
  old value stays. Amplitude's pages do not document it, and some of its SDKs send nulls that others
  leave out. ``$unset`` removes a property.
- A selected property ``address.city`` is found nested or dotted (``rules.paths``), in every
  operation; ``$unset`` of ``address`` unsets it too.

Nothing here raises for a JSON value. An operation that cannot be read is left out and named in
``problems``, by operation and property and never by value, because values may be personal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.texts import encodable

MAX_PROBLEMS: Final = 20
"""Problems of one payload that are named."""

MAX_SHOWN: Final = 100
"""Characters of a name in a problem."""

CLEAR_ALL: Final = "$clearAll"

ORDER: Final = (
    CLEAR_ALL,
    "$unset",
    "$set",
    "$setOnce",
    "$add",
    "$append",
    "$prepend",
    "$preInsert",
    "$postInsert",
    "$remove",
)
"""The order of application in one payload. Source: Amplitude's Node SDK, package ``identify``."""

_CHANGING: Final = frozenset(ORDER) - {CLEAR_ALL}
_SETTING: Final = frozenset({"$set", "$setOnce"})


class Operations(msgspec.Struct, frozen=True, gc=False):
    """The operations of a payload, in the order ``ORDER`` and in Amplitude's spelling.

    ``operations`` maps an operation to ``{property: argument}`` (``$clearAll`` to ``"-"``), without
    empty ones. ``problems`` has a text for each key that was left out, up to ``MAX_PROBLEMS``.
    """

    operations: dict[str, Any] = {}
    problems: tuple[str, ...] = ()


def split(user_properties: object) -> Operations:
    """Return the operations in the ``user_properties`` of an identify or an event.

    Null counts as no properties. Unknown ``$`` keys and malformed arguments become problems.
    """
    if user_properties is None:
        return Operations()
    if not isinstance(user_properties, dict):
        return Operations(problems=("user_properties: not an object",))
    plain: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in user_properties.items():
        if type(value) is dict and name in _CHANGING:  # the usual case first
            operations[name] = value
        elif name[:1] != "$":
            plain[name] = value
        elif (problem := _problem(name, value)) is None:
            operations[name] = value
        else:
            problems.append(f"{short(name)}: {problem}")
    if plain:
        operations["$set"] = {**plain, **operations.get("$set", {})}
    in_order = {}
    for op in ORDER:
        if operations.get(op):
            in_order[op] = operations[op]
    return Operations(in_order, tuple(sorted(problems)[:MAX_PROBLEMS]) if problems else ())


def select(operations: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the part of ``operations`` that concerns the properties ``names``, by these names.

    ``$clearAll`` stays unless ``names`` is empty, and then means: unset all of ``names``.
    """
    selected: dict[str, Any] = {}
    dotted = [name for name in names if "." in name]
    for op, argument in operations.items():
        if op == CLEAR_ALL:
            if names:
                selected[op] = argument
            continue
        kept = {}
        for name in names:
            if name in argument and (argument[name] is not None or op not in _SETTING):
                kept[name] = argument[name]
        for name in dotted:
            if name not in kept and (value := _along_dots(op, argument, name)) is not None:
                kept[name] = value
        if kept:
            selected[op] = kept
    return selected


def _along_dots(op: str, argument: dict[str, Any], name: str) -> Any:
    value = paths.walk(argument, name)
    if value is None and op == "$unset" and any(parent in argument for parent in _parents(name)):
        return "-"
    return value


def _parents(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _problem(op: str, argument: object) -> str | None:
    if op not in ORDER:
        return "not an operation"
    if op == CLEAR_ALL:
        # Clearing destroys, so nothing but the documented spelling starts it.
        return None if argument == "-" else 'the argument is not "-"'
    return None if isinstance(argument, dict) else "the argument is not an object"


def short(name: str) -> str:
    """Return the name of an operation or property, cut for a problem's text."""
    return encodable(name[:MAX_SHOWN])
