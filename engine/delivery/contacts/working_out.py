"""The result of updates: a user's new properties, and the fields to write. Pure.

Rules
=====
1. Properties are the results of Amplitude's operations. A missing property is not known: the
   contact may have a value, which is read before an operation that needs it.
2. Fields are written as absolute values, from properties that are durable before. So a write can be
   repeated, and an operation takes effect once, even if the answer to the first write was lost.
3. A field is written if it differs from the value last written or read, or if a write of it has no
   answer yet.
4. A value that was read from a contact is not written back to it.
5. An event does not set or unset a property that a newer event has set (by setting).
6. If another sync has written a property's field since, the value is the contact's own: it is read
   before it is used, and not written back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from amplitude_intercom.engine.delivery.contacts.drafts import Draft, Properties
from amplitude_intercom.engine.delivery.contacts.selected_properties import SelectedProperties
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.contacts import ContactRules, Types, can_be_cleared, same
from amplitude_intercom.engine.rules.fitting import JOINT
from amplitude_intercom.engine.rules.operations import CLEAR_ALL
from amplitude_intercom.engine.rules.user_properties import apply
from amplitude_intercom.engine.spool.known_contacts import Held, Known

_OF_LISTS: Final = frozenset({"$append", "$prepend", "$preInsert", "$postInsert", "$remove"})

_NO_VALUES: Final[Sequence[Any]] = (None, [], {})
"""Values that leave a contact's field empty."""

UNSAID: Final = object()
"""Stands for the value of an unknown field."""


def properties_of(
    rules: ContactRules, types: Types, selection: SelectedProperties, taker: str, known: Known
) -> dict[str, Held]:
    """Return a taker's properties that can be counted on for the contact that is known."""
    held = selection.properties_of(known, taker)
    # Only where another sync writes the contact too, a field may differ from the property.
    return as_written(rules, types, held, known) if len(known.properties) > 1 else held


def as_written(
    rules: ContactRules, types: Types, held: Properties, known: Known
) -> dict[str, Held]:
    """Return the properties with a field as written for them, or with an unknown field."""
    values = {name: found.value for name, found in held.items() if found.value is not None}
    fields, _ = rules.contact_fields(values, types)

    def holds(field: str) -> bool:
        if field in known.unsure or field not in known.fields:
            return True
        return same(known.fields[field], fields.get(field))

    return {name: found for name, found in held.items() if holds(rules.properties[name])}


def work_out(
    rules: ContactRules,
    types: Types,
    updates: Sequence[ContactUpdate],
    held: Properties,
    known: Known,
    *,
    newer_wins: bool,
    without: Collection[str] = (),
) -> Draft:
    """Return the result of updates, in their order, ``without`` some fields."""
    properties, touched, problems = _apply(updates, held, rules.properties, newer_wins=newer_wins)
    read = _as_it_was_read(rules, properties, touched, known)
    values = {
        name: found.value
        for name, found in properties.items()
        if found.value not in _NO_VALUES and name not in read
    }
    fields, adjustments = rules.contact_fields(values, types)
    empty = {
        name: None
        for source, name in rules.properties.items()
        if source in properties
        and source not in values
        and source not in read
        and (source in touched or name in known.fields or name in known.unsure)
        and name != rules.identifier
        and can_be_cleared(name, types)
    }
    changes = {
        name: value
        for name, value in {**fields, **empty}.items()
        if name not in without
        and (name in known.unsure or not same(known.fields.get(name, UNSAID), value))
    }
    return Draft(properties, changes, [*problems, *adjustments])


def _as_it_was_read(
    rules: ContactRules, properties: Properties, touched: Collection[str], known: Known
) -> set[str]:
    """Return the properties read from the contact, which are not written back (rule 4)."""
    return {
        source
        for source, name in rules.properties.items()
        if source in properties
        and not properties[source].at_ms
        and source not in touched
        and name not in known.unsure
    }


def _apply(
    updates: Sequence[ContactUpdate],
    held: Properties,
    names: Mapping[str, str],
    *,
    newer_wins: bool,
) -> tuple[dict[str, Held], set[str], list[Adjustment]]:
    """Return properties after updates, the names of touched ones, and refused operations."""
    state = {name: found.value for name, found in held.items() if found.value is not None}
    times = {name: found.at_ms for name, found in held.items()}
    touched: set[str] = set()
    refused: list[Adjustment] = []
    for update in updates:
        operations = update.operations
        if newer_wins and update.by_time:
            operations = _without_older(operations, update.at_ms, times, names)
        _take_apart(operations, state, times)
        state, problems = apply(operations, state)
        for name in _names_in(operations, names):
            times[name] = max(times.get(name, 0), update.at_ms)
            touched.add(name)
        refused += [
            Adjustment(AdjustmentReason.OPERATION_REFUSED, "user_properties", text)
            for text in problems
        ]
    known = held.keys() | touched
    return {name: Held(state.get(name), times[name]) for name in known}, touched, refused


def _take_apart(
    operations: Mapping[str, Any], state: dict[str, Any], times: Mapping[str, int]
) -> None:
    """Split texts that were read from the contact, which has a list as one text."""
    for op in _OF_LISTS & operations.keys():
        for name in operations[op]:
            text = state.get(name)
            if times.get(name) == 0 and isinstance(text, str) and JOINT in text:
                state[name] = text.split(JOINT)


def _names_in(operations: Mapping[str, Any], names: Mapping[str, str]) -> set[str]:
    if CLEAR_ALL in operations:
        return set(names)
    return {name for argument in operations.values() for name in argument}


def _without_older(
    operations: Mapping[str, Any], at_ms: int, times: Mapping[str, int], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return operations without the properties that a newer event has set."""
    newer = {name for name, set_ms in times.items() if set_ms > at_ms}
    if not newer:
        return dict(operations)
    left = dict(operations)
    if CLEAR_ALL in left:  # becomes an unset of all others
        del left[CLEAR_ALL]
        left = {"$unset": {}, **left}  # first, in the order of application
        left["$unset"] = {**dict.fromkeys(names, "-"), **left["$unset"]}
    for op in ("$unset", "$set", "$setOnce"):
        if op in left:
            left[op] = {name: value for name, value in left[op].items() if name not in newer}
    return left
