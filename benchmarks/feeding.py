"""Filling a spool with events, and the bodies that delivering them takes."""

from __future__ import annotations

from collections.abc import Sequence

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.rules.bodies import event_body
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep
from amplitude_intercom.engine.settings import Settings

SUBMIT = 500
"""Events that are submitted at once."""

ACCEPTED_AT_MS = 1_800_000_000_000
"""The acceptance of records that no spool has."""


async def fill(settings: Settings, raws: Sequence[bytes]) -> None:
    """Have events accepted, and none delivered."""
    async with Engine(settings, deliver=False) as engine:
        for start in range(0, len(raws), SUBMIT):
            await engine.submit(raws[start : start + SUBMIT], sync="benchmark")


def bodies_of(settings: Settings, raws: Sequence[bytes]) -> list[bytes]:
    """Return the bodies of ``POST /events`` that deliver these events."""
    rules = SyncRules(settings.sync[0])
    bodies = []
    for record in records_of(raws):
        verdict = rules.plan(record)
        assert isinstance(verdict, Keep)
        assert verdict.value.event is not None
        bodies.append(event_body(verdict.value.event))
    return bodies


def records_of(raws: Sequence[bytes]) -> list[Record]:
    """Return events as records, each of another user."""
    return [
        Record(number, Kind.EVENT, f"user-{number:08}", ACCEPTED_AT_MS, raw)
        for number, raw in enumerate(raws)
    ]
