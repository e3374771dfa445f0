"""Metrics of one sync over a span of time: a summary, and a series of points.

Rules
=====
1. All numbers are sums of what the spool has counted by the minute, or by the hour where that is
   older than two days. Nothing is sampled.
2. The summary has the names of Amplitude's Event Streaming Metrics Summary API too, so that a
   dashboard made for that can be pointed here. ``latencyInSeconds`` is the 95th percentile, as
   there.
3. A dead letter counts when it becomes one; what leaves the dead letters later is not taken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import ApiAnswer, Operation, operation
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, stream_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.problems import ProblemType, refused_value
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.accounts import DIED, MINUTE_MS, under
from amplitude_intercom.engine.spool.delivery_times import AFTER_RETRY, FIRST_ATTEMPT, lateness_s
from amplitude_intercom.engine.spool.letters import TimeMs
from amplitude_intercom.engine.spool.minute_reads import counted
from amplitude_intercom.engine.spool.tally import calls_of

Range = Literal["1h", "6h", "24h", "48h", "7d", "30d", "90d"]

_MINUTES: Final[dict[str, int]] = {
    "1h": 60,
    "6h": 360,
    "24h": 1_440,
    "48h": 2_880,
    "7d": 10_080,
    "30d": 43_200,
    "90d": 129_600,
}
_LONGEST: Final = 129_600
"""Minutes of the longest span: so long are hours kept."""

_STEPS: Final = (1, 5, 10, 30, 60, 180, 360, 720, 1_440)
"""Minutes between two points, of which the shortest is taken that makes few enough."""

MOST_POINTS: Final = 360
_EXPIRED: Final = (DeadReason.USER_NOT_FOUND, DeadReason.USER_FAILING, DeadReason.TOO_OLD)
"""Reasons of events that were tried, or waited, for too long; all others are discarded at once."""


class MetricsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A span of time: the last of a length, or from one instant to before another."""

    range: Range | None = None
    start_ms: TimeMs | None = None
    end_ms: TimeMs | None = None


class Point(msgspec.Struct, frozen=True):
    """The counts of one step of a series; ``at_ms``: when it begins."""

    at_ms: int
    received: int
    delivered: int
    dropped: int
    dead: int


class DeliverySummary(msgspec.Struct, frozen=True, rename="camel"):
    """A summary by the names of Amplitude's.

    ``events_not_delivered``: those that became dead letters: expired, after their attempts, or
    discarded, because the same call would be refused again. ``latency_in_seconds``: None: nothing
    was delivered.
    """

    events_delivered: int
    events_not_delivered: int
    delivery_rate: float
    latency_in_seconds: float | None
    success_on_first_attempt: int
    success_after_retry: int
    events_expired: int
    events_discarded: int
    time_period_start: str
    time_period_end: str


class DeliveryMetrics(msgspec.Struct, frozen=True):
    """The metrics of a sync from ``start_ms`` to before ``end_ms``, in steps of ``step_s``.

    ``late_s``: seconds from accepted to settled, by percentile. ``dropped``, ``dead``: by reason.
    ``calls``: by endpoint and status (0: no answer).
    """

    start_ms: int
    end_ms: int
    step_s: int
    received: int
    summary: DeliverySummary
    late_s: dict[str, float]
    dropped: dict[str, int]
    dead: dict[str, int]
    calls: dict[str, int]
    points: list[Point]


class MetricsOfSyncs:
    """Reads the metrics of one engine's syncs."""

    def __init__(self, engine: RunningEngine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads

    def operations(self) -> list[Operation]:
        """Return the operations."""
        path, missing = "/syncs/{sync}/metrics", (ProblemType.NOT_FOUND,)
        return [operation("GET", path, self._read, MetricsQuery, DeliveryMetrics, refusals=missing)]

    async def _read(self, request: web.Request, query: MetricsQuery) -> ApiAnswer:
        """Return the metrics of a sync over a span of time, the last hour unless one is given."""
        taker = stream_of(self._engine, request).spool.taker
        start, end = _span(query, self._engine.spool.now_ms())
        found = await self._reads.look(lambda store: counted(store, taker, start, end))
        return ApiAnswer(metrics_of(found, start, end))


def _span(query: MetricsQuery, now_ms: int) -> tuple[int, int]:
    """Return the first minute since 1970, and the one after the last.

    Raises:
        Problem: the span is none, or too long.
    """
    now = now_ms // MINUTE_MS + 1
    if query.start_ms is None and query.end_ms is None:
        return now - _MINUTES[query.range or "1h"], now
    if query.range is not None or query.start_ms is None:
        detail = "give a range, or start_ms and end_ms"
        raise refused_value("/range", detail)
    start = query.start_ms // MINUTE_MS
    end_ms = now_ms if query.end_ms is None else query.end_ms
    end = -(-end_ms // MINUTE_MS)
    if end_ms <= query.start_ms or end - start > _LONGEST:
        detail = f"it is to be after start_ms, and {_LONGEST // 1_440} days at most"
        raise refused_value("/end_ms", detail)
    return start, end


def metrics_of(found: Mapping[int, Counter[str]], start: int, end: int) -> DeliveryMetrics:
    """Return the metrics that counts by minute are, from one minute to before another."""
    step = next((s for s in _STEPS if (end - start) / s <= MOST_POINTS), _STEPS[-1])
    total: Counter[str] = Counter()
    by_step: dict[int, Counter[str]] = {
        at: Counter() for at in range(start // step * step, end, step)
    }
    for at, counts in found.items():
        total.update(counts)
        by_step[at // step * step].update(counts)
    late = {f"p{share}": lateness_s(total, share / 100) for share in (50, 95, 99)}
    return DeliveryMetrics(
        start * MINUTE_MS,
        end * MINUTE_MS,
        step * 60,
        total["received"],
        _summary(total, start, end),
        {name: seconds for name, seconds in late.items() if seconds is not None},
        under(total, "dropped:"),
        under(total, DIED),
        calls_of(total),
        [_point(at, counts) for at, counts in by_step.items()],
    )


def _summary(total: Counter[str], start: int, end: int) -> DeliverySummary:
    dead = under(total, DIED)
    expired, delivered = sum(dead.get(reason, 0) for reason in _EXPIRED), total["delivered"]
    lost = sum(dead.values())
    return DeliverySummary(
        delivered,
        lost,
        delivered / (delivered + lost) if delivered + lost else 1.0,
        lateness_s(total, 0.95),
        total[FIRST_ATTEMPT],
        total[AFTER_RETRY],
        expired,
        lost - expired,
        _time(start),
        _time(end),
    )


def _time(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _point(at: int, counts: Counter[str]) -> Point:
    dropped = sum(under(counts, "dropped:").values())
    dead = sum(under(counts, DIED).values())
    return Point(at * MINUTE_MS, counts["received"], counts["delivered"], dropped, dead)
