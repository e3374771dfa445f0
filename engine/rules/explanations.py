"""Why a selection takes an event or not: its selectors and clauses, with what was wanted and found.

Pure. ``rules.selection`` makes them by the same compiled conditions that decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.setting_types import Operator, Value

MOST_FOUND: Final = 8
"""Values of a property that are shown; a list counts as one."""

MOST_CHARACTERS: Final = 200
"""Of a value that is shown."""


class ClauseFinding(msgspec.Struct, frozen=True):
    """A ``where`` clause and an event. ``found``: the values of the property, as JSON, shortened.

    ``found`` is empty where the event has no such property. ``held``: whether the clause holds.
    """

    property: str
    op: Operator
    wanted: list[Value]
    found: list[str]
    held: bool


class SelectorFinding(msgspec.Struct, frozen=True):
    """A selector and an event. ``at``: its place in ``events.select``, from 0.

    ``has_type``: whether it names the event's type, or any. ``held``: that, and all its clauses.
    """

    at: int
    types: list[str]
    has_type: bool
    where: list[ClauseFinding]
    held: bool


def shown_values(found: Sequence[Any]) -> list[str]:
    """Return some values as JSON texts for people."""
    return [_shown(value) for value in found[:MOST_FOUND]]


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode(errors="replace")
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def without_values(selectors: Sequence[SelectorFinding]) -> list[SelectorFinding]:
    """Return the findings with ``***`` for each value that was found."""
    return [
        msgspec.structs.replace(
            one,
            where=[
                msgspec.structs.replace(clause, found=["***"] * len(clause.found))
                for clause in one.where
            ],
        )
        for one in selectors
    ]
