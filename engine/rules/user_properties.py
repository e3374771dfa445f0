"""A user's properties after operations (``rules.operations``).

The rules (Amplitude's Identify API and SDK pages):

- A property that is absent or null has no value: ``$setOnce`` sets it, ``$add`` counts from 0, the
  list operations start from an empty list, ``$remove`` leaves it alone.
- A single value is a list of one to the list operations. Values are compared as JSON: 1 is 1.0 but
  not true. ``$append`` and ``$prepend`` keep duplicates; ``$preInsert`` and ``$postInsert`` add
  only values that the list does not have. Several values keep the order of the argument.
- ``$add`` takes finite numbers only, not a boolean or a text; otherwise the old value stays.

Nothing here raises for a JSON value. A refused change is named by operation and property and never
by value, because values may be personal. A property is remembered to the length that may ever be
sent: a text up to ``MAX_KEPT_TEXT`` characters, anything else up to ``MAX_KEPT_BYTES`` of JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.rules.numerals import MAX_WHOLE
from amplitude_intercom.engine.rules.operations import CLEAR_ALL, short
from amplitude_intercom.engine.rules.texts import encodable

MAX_KEPT_TEXT: Final = 1_024
"""Characters of a text: as many as Amplitude keeps, four times as many as a contact."""

MAX_KEPT_BYTES: Final = 4_096
"""Bytes of a list or object as JSON; a contact takes 255 characters of one."""

MAX_KEPT_NUMBER: Final = 10**255
"""A contact takes 255 digits."""

UNCHANGED: Final[Any] = object()
"""In the position of a new value: the old one stays."""

Changed = tuple[Any, str | None]
"""The new value, and the reason for which all or a part of it was refused."""

_TOO_LARGE: Final = "too large to remember"

_encoder = msgspec.json.Encoder()


def apply(
    operations: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the properties after ``operations``, and a problem for each refused change.

    A property that ``$unset`` or ``$clearAll`` removes is absent from the new state. Neither
    argument is changed; the new state may share nested values with both.
    """
    new = {} if CLEAR_ALL in operations else dict(state)
    problems = []
    for op, arguments in operations.items():
        change = _CHANGES.get(op)
        if change is None:
            for name in arguments if op == "$unset" else ():
                new.pop(name, None)
            continue
        for name, argument in arguments.items():
            value, problem = change(new.get(name), argument)
            if value is not UNCHANGED:
                new[name] = value
            if problem is not None:
                problems.append(f"{op} {short(name)}: {problem}")
    return new, tuple(sorted(problems)) if problems else ()


def keep(value: Any) -> Changed:
    """Return the part of a value that is remembered, or ``UNCHANGED``, and the problem, if any."""
    kind = type(value)
    if kind is str:
        kept = value if len(value) <= MAX_KEPT_TEXT else value[:MAX_KEPT_TEXT]
        return encodable(kept), None
    if kind is bool or value is None:
        return value, None
    if kind is int:
        fits = -MAX_KEPT_NUMBER < value < MAX_KEPT_NUMBER
        return (value, None) if fits else (UNCHANGED, "the number is out of range")
    if kind is float:
        return (value, None) if math.isfinite(value) else (UNCHANGED, "the number is not finite")
    if _size(value) <= MAX_KEPT_BYTES:
        return value, None
    if kind is list:
        return _beginning(value), f"{_TOO_LARGE}, the first {MAX_KEPT_BYTES} bytes are"
    return UNCHANGED, _TOO_LARGE


def _size(value: Any) -> int:
    """Return the bytes of a value as JSON; too many if it cannot be encoded."""
    try:
        return len(_encoder.encode(value))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return MAX_KEPT_BYTES + 1


def _beginning(values: list[Any]) -> list[Any]:
    """Return the first elements of a list that fit, without any that is too large by itself."""
    kept, size = [], 2
    for value in values:
        more = _size(value) + 1
        if more > MAX_KEPT_BYTES:
            continue
        size += more
        if size > MAX_KEPT_BYTES:
            break
        kept.append(value)
    return kept


def _set(old: Any, argument: Any) -> Changed:
    return (UNCHANGED, None) if argument is None else keep(argument)


def _set_once(old: Any, argument: Any) -> Changed:
    return _set(old, argument) if old is None else (UNCHANGED, None)


def _add(old: Any, argument: Any) -> Changed:
    if not _is_number(argument):
        return UNCHANGED, "the argument is not a finite number"
    if old is None:
        old = 0
    if not _is_number(old):
        return UNCHANGED, "the old value is not a finite number"
    try:
        total = old + argument
    except OverflowError:  # a float and an integer beyond the range of floats
        return UNCHANGED, "the sum is out of range"
    if not -MAX_WHOLE < total < MAX_WHOLE:
        return UNCHANGED, "the sum is out of range"
    return total, None


def _listed(combine: Callable[[list[Any], list[Any]], list[Any]]) -> Callable[[Any, Any], Changed]:
    """Return the operation that combines the old list with the argument's values."""

    def change(old: Any, argument: Any) -> Changed:
        values, problem = keep(_values(argument))
        kept, too_long = keep(combine(_as_list(old), values))
        return kept, problem or too_long

    return change


def _append(old: list[Any], values: list[Any]) -> list[Any]:
    return [*old, *values]


def _prepend(old: list[Any], values: list[Any]) -> list[Any]:
    return [*values, *old]


def _pre_insert(old: list[Any], values: list[Any]) -> list[Any]:
    return [*_new_values(values, old), *old]


def _post_insert(old: list[Any], values: list[Any]) -> list[Any]:
    return [*old, *_new_values(values, old)]


def _remove(old: Any, argument: Any) -> Changed:
    values, problem = keep(_values(argument))
    gone = _Members(values)
    held = _as_list(old)
    kept = [value for value in held if value not in gone]
    return (kept if len(kept) < len(held) else UNCHANGED), problem


_CHANGES: dict[str, Callable[[Any, Any], Changed]] = {
    "$set": _set,
    "$setOnce": _set_once,
    "$add": _add,
    "$append": _listed(_append),
    "$prepend": _listed(_prepend),
    "$preInsert": _listed(_pre_insert),
    "$postInsert": _listed(_post_insert),
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


def _new_values(values: list[Any], old: list[Any]) -> list[Any]:
    seen = _Members(old)
    new = []
    for value in values:
        if value not in seen:
            seen.add(value)
            new.append(value)
    return new


class _Members:
    """A set of JSON values, which may be lists or objects.

    One hash finds a value, because a list can have thousands.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._keys = set(map(_key, values))

    def add(self, value: Any) -> None:
        self._keys.add(_key(value))

    def __contains__(self, value: object) -> bool:
        return _key(value) in self._keys


_Tokens = tuple[Any, ...]


def _key(value: Any) -> _Tokens:
    """Return a hashable key, equal for equal JSON values: 1 equals 1.0, but not true.

    Every list begins with its length and every object with its sorted keys, so that two different
    values never have the same tokens. Not recursive, so that no depth can exhaust the stack.
    """
    if not isinstance(value, list | dict):
        return (isinstance(value, bool), value)
    tokens: list[_Tokens] = []
    pending: list[Any] = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            names = sorted(value)
            tokens.append(("object", *names))
            pending.extend(map(value.__getitem__, names))
        elif isinstance(value, list):
            tokens.append(("list", len(value)))
            pending.extend(value)
        else:
            tokens.append((isinstance(value, bool), value))
    return tuple(tokens)
