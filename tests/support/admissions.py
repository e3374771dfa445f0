"""A sync's admission, and what it says of an event."""

from __future__ import annotations

import json
from typing import Any

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep
from amplitude_intercom.transports.amplitude_heads import decode_head

ANY: dict[str, Any] = {"select": [{"types": ["*"]}]}
BOUGHT: dict[str, Any] = {"types": ["Bought"]}


def an_admission(**sync: Any) -> Admission:
    base = {"name": "a", "intercom": {"access_token": "t"}, "events": ANY}
    checked = from_table({"sync": [base | sync]}).sync[0]
    return SyncRules(checked).admission


def judged(decide: Admission, raw: bytes) -> Any:
    """The verdict: a kind, a reason to drop, or a reason for a dead letter."""
    verdict = decide.judge(decode_head(raw), raw)
    return verdict.value if isinstance(verdict, Keep) else verdict.reason


def judge(decide: Admission, event_type: str | None, **more: Any) -> Any:
    event = {"event_type": event_type, "user_id": "user-1", **more}
    return judged(decide, json.dumps(event).encode())
