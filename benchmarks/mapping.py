"""How much mapping costs: from an event to the bytes of a request."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from benchmarks import events
from benchmarks.report import Result, in_turns, result_of_rounds
from engine.envelope import Kind, Plan, Record
from engine.mapping import Rules, event_body


def mapping(seed: int, *, smoke: bool) -> list[Result]:
    """Events mapped a second, beside bare decoding and encoding of the same events."""
    count, rounds = (5_000, 5) if smoke else (40_000, 9)
    raws = events.events(count, seed)
    rules = Rules(events.settings(Path("nowhere")).sync[0])
    records = [
        Record(number, Kind.EVENT, f"user-{number:08}", 1_800_000_000_000, raw)
        for number, raw in enumerate(raws)
    ]
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode

    def measured() -> float:
        started = time.perf_counter()
        for record in records:
            plan = rules.plan(record)
            assert isinstance(plan, Plan)
            assert plan.event is not None
            event_body(plan.event, plan.event["created_at"])
        return count / (time.perf_counter() - started)

    def reference() -> float:
        started = time.perf_counter()
        for raw in raws:
            encode(decode(raw))
        return count / (time.perf_counter() - started)

    return [result_of_rounds("mapping", in_turns(rounds, measured, reference), "events/s")]
