"""Metrics of the console's API, at a real port."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import bury, console

METRICS = "/syncs/e2e/metrics"


async def test_the_metrics_of_a_sync_add_up_to_its_counters(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="mira-okafor")
    unselected = {"select": [{"types": ["Purchase"]}]}
    async with console(tmp_path, local, events=unselected) as api:
        events = [process.event("mira-okafor", n, "Purchase") for n in range(3)]
        events += [process.event("mira-okafor", n, "Other") for n in range(2)]
        await api.engine.submit(events, api_key=process.API_KEY)
        await api.engine.settled()
        await bury(api.engine, 2, event_type="Purchase")
        found = await api.get(METRICS)
        status = await api.get("/syncs/e2e")
    assert (found["received"], found["step_s"]) == (status["received"], 60)
    assert found["dropped"] == {"not_selected": 2}
    assert found["dead"] == {"too_old": 2}
    assert found["calls"]["POST /events:202"] == 3
    assert found["late_s"]["p50"] > 0
    points = found["points"]
    for name in ("received", "delivered", "dead"):
        assert sum(point[name] for point in points) == status[name], name
    assert [p["at_ms"] for p in points] == sorted(p["at_ms"] for p in points)
    summary = found["summary"]
    assert (summary["eventsDelivered"], summary["successOnFirstAttempt"]) == (3, 3)
    assert (summary["eventsNotDelivered"], summary["eventsExpired"]) == (2, 2)
    assert (summary["deliveryRate"], summary["successAfterRetry"]) == (0.6, 0)
    assert len(summary) == 10


async def test_a_refusal_is_discarded_and_a_dead_letter_that_leaves_stays_counted(
    tmp_path: Path,
) -> None:
    local = Sandbox(faults=[Fault("status", 400, path="/events")])
    async with console(tmp_path, local) as api:
        await api.engine.submit([process.event("mira-okafor", 1)], api_key=process.API_KEY)
        await api.engine.settled()
        page = await api.get("/syncs/e2e/dead-letters")
        seen = {"up_to_id": page["up_to_id"], "expected": page["matching"]}
        body = {"action": "discard", "filter": {"every": True}, **seen}
        said = await api.ask("POST", "/syncs/e2e/jobs", body)
        while (await api.get(f"/jobs/{said.json['id']}"))["state"] == "waiting":
            pass
        found = await api.get(METRICS)
    assert found["summary"]["eventsDiscarded"] == 1
    assert found["dead"] == {"refused": 1}
    assert found["calls"] == {"POST /events:400": 1}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?range=6h", 200),
        ("?range=90d", 200),
        ("?start_ms=1790000000000&end_ms=1790003600000", 200),
        ("?start_ms=1790000000000&end_ms=1790000000000", 422),
        ("?start_ms=0", 422),
        ("?end_ms=1790000000000", 422),
        ("?range=1h&start_ms=1790000000000", 422),
        ("?range=1y", 422),
    ],
)
async def test_a_span_of_time_has_bounds(tmp_path: Path, query: str, status: int) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("GET", METRICS + query)
        assert said.status == status
        assert status != 200 or len(said.json["points"]) <= 361
