"""A sync's rules, and what they make of an event."""

from __future__ import annotations

import json
from typing import Any

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import Kind, Plan, Record
from amplitude_intercom.engine.rules.bodies import event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep

ACCEPTED_MS = 1_715_677_200_999
ANY = AnyAttribute()


def rules(**sync: Any) -> SyncRules:
    base = {"name": "a", "intercom": {"access_token": "t"}}
    events = {"select": [{"types": ["*"]}], **sync.pop("events", {})}
    return SyncRules(from_table({"sync": [base | sync | {"events": events}]}).sync[0])


def record(event: dict[str, Any], user: str = "user-1", kind: Kind = Kind.EVENT) -> Record:
    return Record(7, kind, user, ACCEPTED_MS, json.dumps({"event_type": "Bought"} | event).encode())


def plan(mapping: SyncRules, event: dict[str, Any], **more: Any) -> Plan:
    verdict = mapping.plan(record(event, **more))
    assert isinstance(verdict, Keep)
    return verdict.value


def body(mapping: SyncRules, event: dict[str, Any], **more: Any) -> dict[str, Any]:
    sent = plan(mapping, event, **more).event
    assert sent is not None
    decoded: dict[str, Any] = json.loads(event_body(sent))
    return decoded
