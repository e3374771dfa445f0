"""The CPU time of mapping: from an event to the bytes of a request.

The reference decodes and encodes the same events. Nothing is stored or sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.rules.bodies import creation_body, event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.user_properties import apply
from amplitude_intercom.engine.rules.verdicts import Keep
from benchmarks import events
from benchmarks.feeding import records_of
from benchmarks.report import Result, in_turns, result_of_rounds

UNIT = "events/s of CPU"


def mapping(seed: int, *, smoke: bool) -> list[Result]:
    """Measure events mapped in a second of CPU: plain, with a nested value, and identifies."""
    count, rounds = (5_000, 5) if smoke else (40_000, 9)
    rules = SyncRules(events.settings(Path("nowhere")).sync[0])
    plain = events.events(count, seed)
    return [
        _measured("mapping", rounds, plain, lambda record: _event(rules, record)),
        _measured("mapping-nested", rounds, _nested(plain), lambda record: _event(rules, record)),
        _measured(
            "mapping-identify", rounds, _identifies(plain), lambda record: _identify(rules, record)
        ),
    ]


def _event(rules: SyncRules, record: Record) -> bytes:
    verdict = rules.plan(record)
    assert isinstance(verdict, Keep)
    plan = verdict.value
    assert plan.event is not None
    return event_body(plan.event, plan.event["created_at"])


def _identify(rules: SyncRules, record: Record) -> bytes:
    """Return the body that creates the contact of an unknown user."""
    verdict = rules.plan(record)
    assert isinstance(verdict, Keep)
    plan = verdict.value
    assert plan.contact is not None
    properties, _ = apply(plan.contact.operations, {})
    rules.contacts.attributes_of(properties)
    fields, _ = rules.contacts.contact_fields(properties, AnyAttribute())
    return creation_body(plan.identity, fields)


def _nested(raws: list[bytes]) -> list[bytes]:
    """Return the events with an object as one selected property."""
    changed = map(msgspec.json.decode, raws)
    nested = {"page": "/shop/newsletter", "from": "mail"}
    return [
        msgspec.json.encode(e | {"event_properties": e["event_properties"] | {"path": nested}})
        for e in changed
    ]


def _identifies(raws: list[bytes]) -> list[bytes]:
    """Return identifies of the same users."""
    operations = {
        "$set": {"plan": "pro", "company": "Acme", "city": "Oslo"},
        "$setOnce": {"first_seen": "2024-05-14", "source": "newsletter"},
        "$add": {"seats": 1, "visits": 1},
    }
    more = {"event_type": "$identify", "event_properties": None, "user_properties": operations}
    return [msgspec.json.encode(msgspec.json.decode(raw) | more) for raw in raws]


def _measured(
    name: str, rounds: int, raws: list[bytes], mapped: Callable[[Record], bytes]
) -> Result:
    records = records_of(raws)
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode

    def measured() -> float:
        started = time.process_time()
        for record in records:
            mapped(record)
        return len(raws) / (time.process_time() - started)

    def reference() -> float:
        started = time.process_time()
        for raw in raws:
            encode(decode(raw))
        return len(raws) / (time.process_time() - started)

    return result_of_rounds(name, in_turns(rounds, measured, reference), UNIT)
