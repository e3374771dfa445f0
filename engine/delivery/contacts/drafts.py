"""Drafts of updates, and the updates that need to know the contact first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate
from amplitude_intercom.engine.rules.operations import CLEAR_ALL
from amplitude_intercom.engine.spool.known_contacts import Held

Properties = Mapping[str, Held]

_ABSOLUTE: Final = frozenset({CLEAR_ALL, "$set", "$unset"})
"""Operations that need no base."""

_REPEATED_IN_EFFECT: Final = frozenset({"$add", "$append", "$prepend"})
"""Operations that come to something else where they are applied to their own result."""


class Draft(msgspec.Struct, frozen=True):
    """The result of updates: a taker's ``properties`` afterwards, and the flat fields to be
    written, null for those that are cleared."""

    properties: dict[str, Held]
    changes: dict[str, Any]
    adjustments: list[Adjustment]


def needs_base(updates: Iterable[ContactUpdate], held: Properties) -> bool:
    """Return whether something has to be known of the contact that is not."""
    return any(not held.keys() >= names.keys() for _, names in _based(updates))


def cannot_be_created(updates: Iterable[ContactUpdate]) -> bool:
    """Return whether a create with these must not be made again: where its answer is lost, the
    contact may hold their result, or its earlier values."""
    return any(op in _REPEATED_IN_EFFECT for op, _ in _based(updates))


def _based(updates: Iterable[ContactUpdate]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for update in updates:
        for op, names in update.operations.items():
            if op not in _ABSOLUTE:
                yield op, names
