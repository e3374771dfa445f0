"""Amplitude's user property operations: read out of a payload, applied to a user's properties.

The rules (Amplitude's Identify API and SDK pages):

- The operations of one payload are applied in the order ``ORDER``, whatever the order of its keys.
- Plain keys act like ``$set``; where a payload has both for one property, the ``$set`` wins.
- ``$clearAll`` takes the text ``"-"``, every other operation an object ``{property: argument}``.
- A property that is absent or null has no value: ``$setOnce`` sets it, ``$add`` counts from 0, the
  list operations start from an empty list, ``$remove`` leaves it alone.
- A single value is a list of one to the list operations. Values are compared as JSON: 1 is 1.0 but
  not true. ``$append``, ``$prepend`` keep duplicates; ``$preInsert`` and ``$postInsert`` add only
  what the list does not hold yet; several values go in in the order of the argument.
- ``$add`` takes finite numbers only (a boolean or a text is none): else the old value stays.

Nothing here raises for anything that JSON can say: what cannot be done is left out and named in
``problems``, by operation and property and never by value, for values may be personal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CLEAR_ALL = "$clearAll"

ORDER = (
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

_STATELESS = frozenset({CLEAR_ALL, "$unset", "$set"})
_LONGEST_NAME_IN_A_PROBLEM = 100


@dataclass(frozen=True, slots=True)
class Operations:
    """What a payload asks for: ``operations`` in the order of ``ORDER``, spelled as Amplitude does.

    ``operations`` maps an operation to ``{property: argument}`` (``$clearAll`` to ``"-"``) and has
    no empty ones. ``problems`` has one text for each key that was left out.
    """

    operations: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def split(user_properties: object) -> Operations:
    """The operations in the ``user_properties`` of an identify or an event.

    Null counts as no properties. Unknown ``$`` keys and malformed arguments become problems.
    """
    if user_properties is None:
        return Operations()
    if not isinstance(user_properties, Mapping):
        return Operations(problems=("user_properties: not an object",))
    plain: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    problems = []
    for name, value in user_properties.items():
        if not name.startswith("$"):
            plain[name] = value
        elif (problem := _problem(name, value)) is not None:
            problems.append(f"{_short(name)}: {problem}")
        else:
            operations[name] = value
    if plain:
        operations["$set"] = {**plain, **operations.get("$set", {})}
    in_order = {op: operations[op] for op in ORDER if operations.get(op)}
    return Operations(in_order, tuple(sorted(problems)))


def select(operations: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of ``operations`` that concern the properties ``names``.

    A ``$clearAll`` is kept where there are names, and then means: unset all of ``names``.
    """
    selected: dict[str, Any] = {}
    for op in ORDER:
        argument = operations.get(op)
        if op == CLEAR_ALL:
            if argument and names:
                selected[op] = argument
        elif kept := {name: value for name, value in (argument or {}).items() if name in names}:
            selected[op] = kept
    return selected


def needs_state(operations: Mapping[str, Any]) -> bool:
    """Whether the outcome depends on the old values: there is more than set, unset and clear."""
    return not operations.keys() <= _STATELESS


def apply(
    operations: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The properties after ``operations`` (of ``split`` or ``select``), and what was refused.

    What ``$unset`` and ``$clearAll`` remove is absent from the new state. Neither argument is
    changed; the new state may share nested values with both.
    """
    new = {} if CLEAR_ALL in operations else dict(state)
    problems = []
    for op, change in _CHANGES.items():
        for name, argument in operations.get(op, {}).items():
            problem = change(new, name, argument)
            if problem is not None:
                problems.append(f"{op} {_short(name)}: {problem}")
    return new, tuple(sorted(problems))


def _problem(op: str, argument: object) -> str | None:
    if op not in ORDER:
        return "not an operation"
    if op == CLEAR_ALL:
        # Clearing destroys, so nothing but the documented spelling starts it.
        return None if argument == "-" else 'the argument is not "-"'
    return None if isinstance(argument, Mapping) else "the argument is not an object"


def _short(name: str) -> str:
    return name[:_LONGEST_NAME_IN_A_PROBLEM]


# A change works on the new state in place and returns why it was refused, or None.
_Change = Callable[[dict[str, Any], str, Any], str | None]


def _unset(state: dict[str, Any], name: str, _: Any) -> None:
    state.pop(name, None)


def _set(state: dict[str, Any], name: str, argument: Any) -> None:
    state[name] = argument


def _set_once(state: dict[str, Any], name: str, argument: Any) -> None:
    if state.get(name) is None:
        state[name] = argument


def _add(state: dict[str, Any], name: str, argument: Any) -> str | None:
    old = state.get(name)
    if old is None:
        old = 0
    if not _is_number(argument):
        return "the argument is not a finite number"
    if not _is_number(old):
        return "the old value is not a finite number"
    try:
        total = old + argument
    except OverflowError:  # an int beyond any float, and a float
        total = math.inf
    if not _is_number(total):
        return "the sum is out of range"
    state[name] = total
    return None


def _append(state: dict[str, Any], name: str, argument: Any) -> None:
    state[name] = [*_as_list(state.get(name)), *_values(argument)]


def _prepend(state: dict[str, Any], name: str, argument: Any) -> None:
    state[name] = [*_values(argument), *_as_list(state.get(name))]


def _pre_insert(state: dict[str, Any], name: str, argument: Any) -> None:
    old = _as_list(state.get(name))
    state[name] = [*_new_values(argument, old), *old]


def _post_insert(state: dict[str, Any], name: str, argument: Any) -> None:
    old = _as_list(state.get(name))
    state[name] = [*old, *_new_values(argument, old)]


def _remove(state: dict[str, Any], name: str, argument: Any) -> None:
    old = _as_list(state.get(name))
    gone = _Members(_values(argument))
    kept = [value for value in old if value not in gone]
    if len(kept) < len(old):
        state[name] = kept


_CHANGES: dict[str, _Change] = {
    "$unset": _unset,
    "$set": _set,
    "$setOnce": _set_once,
    "$add": _add,
    "$append": _append,
    "$prepend": _prepend,
    "$preInsert": _pre_insert,
    "$postInsert": _post_insert,
    "$remove": _remove,
}


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else _values(value)


def _values(argument: Any) -> list[Any]:
    return argument if isinstance(argument, list) else [argument]


def _new_values(argument: Any, old: list[Any]) -> list[Any]:
    seen = _Members(old)
    new = []
    for value in _values(argument):
        if value not in seen:
            seen.add(value)
            new.append(value)
    return new


class _Members:
    """JSON values to look up: scalars by hash, for lists can have thousands; the rest in turn."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._scalars: set[tuple[bool, Any]] = set()
        self._containers: list[Any] = []
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        if isinstance(value, list | dict):
            self._containers.append(value)
        else:
            self._scalars.add((isinstance(value, bool), value))

    def __contains__(self, value: object) -> bool:
        if isinstance(value, list | dict):
            return any(_same(value, other) for other in self._containers)
        return (isinstance(value, bool), value) in self._scalars


def _same(first: Any, second: Any) -> bool:
    """Equality as JSON has it. Not recursive, so that no depth of nesting can exhaust the stack."""
    pending = [(first, second)]
    while pending:
        a, b = pending.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pending.extend((a[key], b[key]) for key in a)
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) is not isinstance(b, bool) or a != b:
            return False
    return True
