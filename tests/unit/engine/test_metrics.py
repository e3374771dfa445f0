"""Metrics: every one has a sample where its value is there."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.histograms import HistogramValue
from amplitude_intercom.engine.metrics import METRICS, PREFIX, render
from amplitude_intercom.engine.status import (
    GateStatus,
    HttpStatus,
    LeftSync,
    LoopStatus,
    RefusalCount,
    RelayStatus,
    SourceStatus,
    SpoolStatus,
    Status,
    SyncStatus,
)

TOOK = HistogramValue((0.1, 1.0), (1, 2, 0), 1.5)
TAKER: dict[str, Any] = {
    "enabled": True,
    "received": 4,
    "delivered": 1,
    "dropped": {"duplicate": 1},
    "dead": 1,
    "pending": 1,
    "dead_by_reason": {"refused": 1},
    "waiting_bytes": 100,
    "oldest_pending_s": 2.0,
    "last_delivery_s": 3.0,
}
GATE = GateStatus(
    "api.intercom.io#1", "well", 167.0, 1, {"POST /events 202": 1}, {}, took=TOOK, remaining=9
)
SYNC = SyncStatus(
    name="e2e",
    **TAKER,
    parked_users={"user_not_found": 1},
    oldest_parked_s=4.0,
    adjusted={"taken": 1},
    unknown_attributes={},
    event_names=1,
    latency_s={"p50": 0.1, "p95": 0.2},
    intercom=GATE,
    deliveries=TOOK,
)
RELAY = RelayStatus(name="mirror", **TAKER, address="a", health="well", calls={"200": 1})
SPOOL = SpoolStatus(
    1,
    1,
    1,
    "",
    {"gone": LeftSync(1, 2)},
    max_bytes=9,
    disk_free_bytes=9,
    rows={"pending": 1},
    commits=TOOK,
)
HTTP = HttpStatus({"/batch 200": 1}, TOOK, 1, 0)
STATUS = Status(
    "running",
    "/data",
    [SYNC],
    SPOOL,
    [RefusalCount("/batch", "too_large", 1)],
    sources=[SourceStatus("http", "", 0, HTTP)],
    relays=[RELAY],
    loop=LoopStatus(TOOK, 0.1),
)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_sample_where_its_value_is_there(name: str) -> None:
    lines = render(STATUS, ready=True).decode().splitlines()
    starts = tuple(f"{PREFIX}{name}{rest}" for rest in (" ", "{", "_count{", "_count "))
    assert any(line.startswith(starts) for line in lines)
