"""Previews of events: an event costs itself alone."""

from __future__ import annotations

import msgspec
import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.console.api_v1.event_previews import (
    foreseen_each,
    refuse_much,
    shown,
)
from amplitude_intercom.engine.console.problems import Problem
from amplitude_intercom.engine.envelope import Kind, Plan, Record
from amplitude_intercom.engine.previewing import Preview, relay_replayed
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Verdict
from amplitude_intercom.engine.settings import Clause, Selector
from amplitude_intercom.engine.spool.rows import dead_letter

SYNC = {
    "name": "a",
    "intercom": {"access_token": "t"},
    "events": {"select": [{"types": ["*"]}], "metadata": ["n"]},
}


@pytest.mark.parametrize(
    ("types", "values", "most"), [(4, 0, 10_000), (1, 198, 200), (0, 39_999, 1), (1, 50_000, 1)]
)
def test_an_answer_repeats_a_bounded_number_of_clauses(types: int, values: int, most: int) -> None:
    [sync] = from_table({"sync": [SYNC]}).sync
    where = [Clause("event.n", "is", [*range(values)])] if values else []
    select = [Selector([f"E{n}" for n in range(types)], where)]
    sync = msgspec.structs.replace(sync, events=msgspec.structs.replace(sync.events, select=select))
    refuse_much(most, sync)
    with pytest.raises(Problem, match=f"up to {most} at once") as refused:
        refuse_much(most + 1, sync)
    assert refused.value.status == 413


class BrokenRules(SyncRules):
    def plan(self, record: Record) -> Verdict[Plan]:
        if record.user_key.startswith("poison"):
            raise OverflowError(10**5_000)
        return super().plan(record)


def test_a_fault_of_this_program_costs_the_event_that_meets_it() -> None:
    [sync] = from_table({"sync": [SYNC]}).sync
    preview = Preview(sync)
    preview.rules = BrokenRules(sync)
    users = ("mira", "poison-1", "liam")
    events = [f'{{"event_type": "E", "user_id": "{user}-okafor"}}'.encode() for user in users]
    with capture_logs() as lines:
        found = [shown(one, hides_values=False) for one in foreseen_each(events, preview)]
    assert [(one.verdict, one.reason) for one in found] == [
        ("send", ""),
        ("reject", "internal"),
        ("send", ""),
    ]
    assert found[1].means != ""
    assert [line["event"] for line in lines] == ["internal fault"]


def test_hostile_events_have_a_verdict_each() -> None:
    [sync] = from_table({"sync": [SYNC]}).sync
    hostile = [
        b"null",
        b"[]",
        b"1e999",
        b"{}",
        b'"\\ud800"',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"event_type": "E", "user_id": "mira", "time": 1e999}',
        b'{"event_type": "E", "user_id": "mira", "event_properties": {"n": ' + b"9" * 5_000 + b"}}",
        b'{"event_type": "\\u0000", "user_id": "\\ud800"}',
        b'{"event_type": "E", "user_id": "mira", "event_properties": {"n": '
        + b'{"a":' * 200
        + b"1"
        + b"}" * 202,
    ]
    with capture_logs() as lines:
        found = foreseen_each(hostile, Preview(sync))
    assert len(found) == len(hostile)
    assert {one.verdict for one in found} <= {"send", "reject", "drop"}
    assert lines == [], "none of them is a fault of this program"


def test_a_relay_s_letter_would_be_the_request_that_it_was() -> None:
    record = Record(1, Kind.EVENT, "", 0, b'{"n": 9007199254740993}')
    letter = msgspec.structs.replace(
        dead_letter(record, Failure(DeadReason.AMPLITUDE_REFUSED), 0), origin="relay /2/httpapi"
    )
    found = shown(relay_replayed(letter), hides_values=False)
    (call,) = found.requests
    assert (found.verdict, call.method, call.path) == ("send", "POST", "/2/httpapi")
    assert call.body is not None
    assert "9007199254740993" in call.body.text
    (hidden,) = shown(relay_replayed(letter), hides_values=True).requests
    assert hidden.body is None
