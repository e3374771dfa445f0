"""What a user's contact must hold after its updates: the rules once more, written independently.

A property is ``Held``: its value, and between which times it was set last. Where an event from
outside leaves open what is right, the value is ``UNSURE``, and so is everything worked out from it,
until an update sets it anew. The model says so rather than guess, and is exact elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

ORDER: Final = (
    "$clearAll $unset $set $setOnce $add $append $prepend $preInsert $postInsert $remove".split()
)

UNSURE: Final[Any] = "(unsure)"
"""A value that the rules leave open."""


SURE: Final[Any] = "(sure)"


class Held(NamedTuple):
    """A property: null where it is known to have no value.

    The event that set it last has a time from ``low`` to ``high``. ``believed``: what was written
    last, where the contact has become another one since: setting that again needs no call, and so
    it may be that nobody notices. ``SURE``: the contact is the same.
    """

    value: Any
    low: float = -math.inf
    high: float = -math.inf
    believed: Any = SURE


NEVER_SET: Final = Held(None)

Properties = dict[str, Held]
Base = Callable[[str], Any]
"""What the contact held of a property before we wrote it."""


class Update(NamedTuple):
    """An identify, or an event that brings properties along."""

    payload: Mapping[str, Any]
    selected: Collection[str]
    time_s: float
    newer_wins: bool


def steps(update: Update) -> Iterator[tuple[str, str, Any]]:
    """Yield a payload's operations on selected properties, each as operation, property, argument.

    A plain key is a ``$set``, unless the payload sets the same property by name.
    """
    payload = dict(update.payload)
    plain = {name: payload.pop(name) for name in [*payload] if not name.startswith("$")}
    payload["$set"] = {**plain, **payload.get("$set", {})}
    for operation in ORDER:
        if operation == "$clearAll":
            if operation in payload:
                yield from ((operation, name, None) for name in update.selected)
            continue
        for name, argument in payload.get(operation, {}).items():
            if name in update.selected and (argument is not None or operation == "$unset"):
                yield operation, name, argument


def names_of(update: Update) -> set[str]:
    """Return the properties that an update is about."""
    return {name for _, name, _ in steps(update)}


def needs_base(update: Update, properties: Properties) -> bool:
    """Return whether an update has operations on values that were not known before it."""
    return any(
        name not in properties
        for operation, name, _ in steps(update)
        if operation not in ("$clearAll", "$unset", "$set")
    )


def apply(update: Update, properties: Properties, base: Base) -> Properties:
    """Return a user's properties after an update."""
    found = dict(properties)
    for operation, name, argument in steps(update):
        if operation in ("$clearAll", "$set", "$unset"):
            value = argument if operation == "$set" else None
            found[name] = _set(found.get(name, NEVER_SET), value, update)
        elif operation == "$setOnce" and update.newer_wins and _is_late(found.get(name), update):
            found[name] = _set_once_late(found[name], update)
        else:
            held = found[name] if name in found else Held(_as_read(base(name), operation))
            found[name] = Held(
                changed(operation, held.value, argument),
                min(held.low, update.time_s),
                max(held.high, update.time_s),
                SURE if held.believed is SURE else UNSURE,
            )
    return found


def _as_read(value: Any, operation: str) -> Any:
    """Return what a contact holds as an operation finds it: a list is one text there."""
    is_of_lists = operation in ("$append", "$prepend", "$preInsert", "$postInsert", "$remove")
    if is_of_lists and isinstance(value, str) and ", " in value:
        return value.split(", ")
    return value


def _is_late(held: Held | None, update: Update) -> bool:
    return held is not None and update.time_s < held.high


def _set_once_late(held: Held, update: Update) -> Held:
    """Return a property that may have been set since: what has a value keeps it in any case."""
    if held.value is not None or update.time_s < held.low:
        return held
    return held._replace(value=UNSURE)


def _set(held: Held, value: Any, update: Update) -> Held:
    """Return a property after a ``$set`` or ``$unset``, which may come too late."""
    at_s = update.time_s
    if not update.newer_wins or at_s >= held.high:
        return _written(held, value, at_s, at_s)
    if at_s < held.low:
        return held
    # Whether an operation in between counts as what set the property is not said.
    is_same = same(as_field(held.value), as_field(value)) and held.believed is SURE
    return held._replace(value=held.value if is_same else UNSURE)


def _written(held: Held, value: Any, low: float, high: float) -> Held:
    """Return a property that is set, if that is noticed."""
    if held.believed is SURE:
        return Held(value, low, high)
    if held.believed is UNSURE or same(as_field(held.believed), as_field(value)):
        return Held(UNSURE, low, high, value)
    return Held(value, low, high)


def changed(operation: str, old: Any, argument: Any) -> Any:
    """Return a value after an operation that looks at the old one."""
    if old is UNSURE:
        return UNSURE
    if operation == "$setOnce":
        return argument if old is None else old
    if operation == "$add":
        both = is_number(argument) and (old is None or is_number(old))
        return (old or 0) + argument if both else old
    new, have = as_list(argument), [] if old is None else as_list(old)
    match operation:
        case "$append":
            return have + new
        case "$prepend":
            return new + have
        case "$preInsert":
            return without(distinct(new), have) + have
        case "$postInsert":
            return have + without(distinct(new), have)
    kept = without(have, new)
    return kept if len(kept) < len(have) else old


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def same(one: Any, other: Any) -> bool:
    """Return whether two values are one in JSON; an empty text is none on a contact."""
    if one in (None, "") or other in (None, ""):
        return one in (None, "") and other in (None, "")
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def without(values: list[Any], others: list[Any]) -> list[Any]:
    return [value for value in values if not any(same(value, other) for other in others)]


def distinct(values: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        kept += without([value], kept)
    return kept


def moved(properties: Properties, names: Collection[str]) -> Properties:
    """Return properties of a user whose contact has become another one, unnoticed as yet."""
    found = {}
    for name in {*names, *properties}:
        held = properties.get(name, NEVER_SET)
        believed = held.value if held.believed is SURE else held.believed
        found[name] = Held(UNSURE, high=held.high, believed=believed)
    return found


def perhaps(update: Update, properties: Properties) -> Properties:
    """Return properties after an update of which nobody knows whether it was applied."""
    found = dict(properties)
    for name in names_of(update):
        held = found.get(name, NEVER_SET)
        high = max(held.high, update.time_s)
        found[name] = Held(UNSURE, high=high, believed=held.believed)
    return found


def read_again(properties: Properties) -> Properties:
    """Return properties that may be read from the contact again, as it has them by now.

    A list is one text there, and when something was set is not told.
    """
    return {
        name: Held(
            UNSURE if isinstance(held.value, list) else held.value,
            high=held.high,
            believed=held.believed,
        )
        for name, held in properties.items()
    }


def as_field(value: Any) -> Any:
    """Return a value as a contact's field has it; an empty list clears it."""
    if not isinstance(value, list):
        return value
    return ", ".join(map(_text, value)) or None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
