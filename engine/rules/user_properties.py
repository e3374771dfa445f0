"""Amplitude's user property operations: read out of a payload, applied to a user's properties.

The rules (Amplitude's Identify API and SDK pages):

- The operations of one payload are applied in the order ``ORDER``, whatever the order of its keys.
- Plain keys act like ``$set``; where a payload has both for one property, the ``$set`` wins.
- ``$clearAll`` takes the text ``"-"``, every other operation an object ``{property: argument}``.
- Null in ``$set``, ``$setOnce`` and plain keys says nothing, as everywhere
  (``engine.rules.paths``): the old value stays. Amplitude's pages do not say what it does, and some
  of its SDKs send the nulls that others leave out; ``$unset`` is what removes a property.
- A property that is absent or null has no value: ``$setOnce`` sets it, ``$add`` counts from 0, the
  list operations start from an empty list, ``$remove`` leaves it alone.
- A single value is a list of one to the list operations. Values are compared as JSON: 1 is 1.0 but
  not true. ``$append``, ``$prepend`` keep duplicates; ``$preInsert`` and ``$postInsert`` add only
  what the list does not hold yet; several values go in in the order of the argument.
- ``$add`` takes finite numbers only (a boolean or a text is none): else the old value stays.

- A selected property ``address.city`` is found nested or dotted (``engine.rules.paths``), in every
  operation; ``$unset`` of ``address`` unsets it too.

Nothing here raises for anything that JSON can say: what cannot be done is left out and named in
``problems``, by operation and property and never by value, for values may be personal. A property
is remembered as far as it may ever be sent: a text up to ``MAX_KEPT_TEXT`` characters, anything
else up to ``MAX_KEPT_BYTES`` of JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.numerals import MAX_WHOLE
from amplitude_intercom.engine.rules.texts import encodable

MAX_KEPT_TEXT: Final = 1_024
"""Characters of a text: as many as Amplitude keeps, four times what a contact takes."""

MAX_KEPT_BYTES: Final = 4_096
"""Bytes as JSON of a list or object; a contact takes 255 characters of one."""

MAX_KEPT_NUMBER: Final = 10**255
"""A contact takes 255 digits."""

MAX_PROBLEMS: Final = 20
"""Problems of one payload that are named."""

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

_CHANGING = frozenset(ORDER) - {CLEAR_ALL}
_STATELESS = frozenset({CLEAR_ALL, "$unset", "$set"})
_SETTING = frozenset({"$set", "$setOnce"})
_LONGEST_NAME_IN_A_PROBLEM = 100


class Operations(msgspec.Struct, frozen=True, gc=False):
    """What a payload asks for: ``operations`` in the order of ``ORDER``, spelled as Amplitude does.

    ``operations`` maps an operation to ``{property: argument}`` (``$clearAll`` to ``"-"``) and has
    no empty ones. ``problems`` has a text for each key that was left out, up to ``MAX_PROBLEMS``.
    """

    operations: dict[str, Any] = {}
    problems: tuple[str, ...] = ()


def split(user_properties: object) -> Operations:
    """The operations in the ``user_properties`` of an identify or an event.

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
        if type(value) is dict and name in _CHANGING:  # most often so
            operations[name] = value
        elif name[:1] != "$":
            plain[name] = value
        elif (problem := _problem(name, value)) is None:
            operations[name] = value
        else:
            problems.append(f"{_short(name)}: {problem}")
    if plain:
        operations["$set"] = {**plain, **operations.get("$set", {})}
    in_order = {}
    for op in ORDER:
        if operations.get(op):
            in_order[op] = operations[op]
    return Operations(in_order, tuple(sorted(problems)[:MAX_PROBLEMS]) if problems else ())


def select(operations: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Those of ``operations`` (of ``split``) that concern the properties ``names``, by these names.

    A ``$clearAll`` is kept where there are names, and then means: unset all of ``names``.
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
                problems.append(f"{op} {_short(name)}: {problem}")
    return new, tuple(sorted(problems)) if problems else ()


def _problem(op: str, argument: object) -> str | None:
    if op not in ORDER:
        return "not an operation"
    if op == CLEAR_ALL:
        # Clearing destroys, so nothing but the documented spelling starts it.
        return None if argument == "-" else 'the argument is not "-"'
    return None if isinstance(argument, dict) else "the argument is not an object"


def _short(name: str) -> str:
    return encodable(name[:_LONGEST_NAME_IN_A_PROBLEM])


# --- values -----------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()

UNCHANGED: Final[Any] = object()
"""In the position of a new value: the old one stays."""

Changed = tuple[Any, str | None]
"""The new value, and what was refused of it."""

_TOO_LARGE: Final = "too large to remember"


def keep(value: Any) -> Changed:
    """Return as much of a value as is remembered, or ``UNCHANGED``, and what was refused of it."""
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
    """Return a value's bytes as JSON; more than are kept where it cannot be written."""
    try:
        return len(_encoder.encode(value))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return MAX_KEPT_BYTES + 1


def _beginning(values: list[Any]) -> list[Any]:
    """Return the first elements of a list, as many as are kept; without those that never are."""
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


# --- operations -------------------------------------------------------------------------------


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
    except OverflowError:  # an int beyond any float, and a float
        return UNCHANGED, "the sum is out of range"
    if not -MAX_WHOLE < total < MAX_WHOLE:
        return UNCHANGED, "the sum is out of range"
    return total, None


def _listed(combine: Callable[[list[Any], list[Any]], list[Any]]) -> Callable[[Any, Any], Changed]:
    """Return the change that combines the old list and the argument's."""

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
    """JSON values to look up, each by one hash: a list can have thousands, of lists or objects."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._keys = set(map(_key, values))

    def add(self, value: Any) -> None:
        self._keys.add(_key(value))

    def __contains__(self, value: object) -> bool:
        return _key(value) in self._keys


_Tokens = tuple[Any, ...]


def _key(value: Any) -> _Tokens:
    """Return what is equal for values that JSON takes for the same: 1 and 1.0, but not true.

    Every list begins with its length and every object with its sorted keys, so that no two values
    are written with the same tokens. Not recursive, so that no depth can exhaust the stack.
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
