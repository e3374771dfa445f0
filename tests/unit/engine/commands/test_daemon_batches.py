"""Batches that are handed to a daemon: their pieces, lost answers, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.daemon_batches import (
    MOST_EVENT_BYTES,
    OLD_MS,
    PIECE_BYTES,
    RUN,
    DaemonBatches,
    EventTooLarge,
    pieces,
)
from amplitude_intercom.engine.console.api_v1.batch_values import (
    MOST_CHECKPOINTS,
    MOST_EVENTS,
    BatchReceipt,
    CheckpointChange,
    HandedBatch,
    PendingFacts,
)
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.amplitude import BadEvent
from amplitude_intercom.transports.contract import Batch
from support.virtual import in_virtual_time

NOW_MS = 1_800_000_000_000


@given(
    st.lists(st.sampled_from([0, 10, PIECE_BYTES // 3, PIECE_BYTES, PIECE_BYTES + 9]), max_size=9),
    st.sampled_from([0, 1, MOST_EVENTS]),
    st.sampled_from([0, 1, MOST_CHECKPOINTS - 1, MOST_CHECKPOINTS, 3 * MOST_CHECKPOINTS]),
)
def test_pieces_are_the_batch_in_its_order_and_each_fits(
    sizes: list[int], more: int, checkpoints: int
) -> None:
    raws = [bytes(size) for size in sizes] + [b"x"] * more
    batch = Batch(None, raws, origin="f", lines=range(1, len(raws) + 1))
    batch.checkpoints = {str(n): "" for n in range(checkpoints)}
    found = list(pieces(batch))
    assert [raw for piece in found for raw in piece.events] == raws
    assert [line for piece in found for line in piece.lines or ()] == list(batch.lines or ())
    for piece in found:
        assert len(piece.events) <= MOST_EVENTS
        assert len(piece.checkpoints) < MOST_CHECKPOINTS  # the run's own comes with them
        assert len(piece.events) == 1 or sum(map(len, piece.events)) <= PIECE_BYTES
        assert piece.events or piece.checkpoints
    # Checkpoints are of earlier batches: none waits for an event of this one.
    named = [name for piece in found for name in piece.checkpoints]
    assert named == list(batch.checkpoints)
    with_events = [piece for piece in found if piece.events]
    assert not any(piece.checkpoints for piece in with_events[1:])


def test_an_event_that_was_cut_goes_with_the_digest_of_the_whole() -> None:
    cut = BadEvent("too_large", "", "longer than 9 bytes", digest=b"d")
    bad = BadEvent("invalid_json", "", "no JSON")
    [piece] = pieces(Batch([bad, cut], [b"{", b"x" * 9], origin="f\udcff"))
    [found] = piece.cut
    assert (found.index, found.digest, found.why) == (1, b"d", "longer than 9 bytes")
    assert (piece.origin, piece.lines) == ("f\\udcff", None)


def test_an_event_that_fits_into_no_request_is_named() -> None:
    batch = Batch(None, [b"", bytes(MOST_EVENT_BYTES + 1)], origin="f", lines=[1, 2])
    with pytest.raises(EventTooLarge, match="f, line 2: an event of 12,000,001 bytes"):
        list(pieces(batch))


class OneDaemon:
    """A daemon's side in memory. ``losing``: numbers of answers that are lost, with whether their
    batch has landed."""

    trouble = ""

    def __init__(self, losing: dict[int, bool] | None = None) -> None:
        self.kept: dict[str, str] = {}
        self.taken: list[list[bytes]] = []
        self.pending_now = 0
        self.traffic = 0
        self.waits = 0
        self.delivers = True
        self._losing = losing or {}
        self._asked = 0

    async def hand(
        self, batch: HandedBatch, has_landed: Callable[[], Awaitable[bool]]
    ) -> BatchReceipt | None:
        while True:
            self._asked += 1
            lands = self._losing.get(self._asked, True)
            if lands:
                self.taken.append(batch.events)
                self.kept.update(batch.checkpoints)
            if self._asked not in self._losing:
                return BatchReceipt(len(batch.events), {}, {}, len(self.taken))
            if await has_landed():
                return None

    async def checkpoints(self, source: str = "") -> dict[str, str]:
        return {name: at for name, at in self.kept.items() if source in ("", name)}

    async def change_checkpoints(self, change: CheckpointChange) -> None:
        for name in change.forget:
            self.kept.pop(name, None)
        self.kept.update(change.keep)

    async def pending(self, up_to: int | None, *, parked: bool = False) -> PendingFacts:
        self.waits = max(0, self.waits - 1)
        received = self._received
        return PendingFacts(
            self.waits > 0,
            len(self.taken),
            received,
            self.pending_now,
            None,
            self.delivers,
            "well",
            "",
        )

    async def glance(self) -> PendingFacts | None:
        return await self.pending(None)

    @property
    def _received(self) -> int:
        return sum(map(len, self.taken)) + self.traffic

    async def status(self) -> SyncStatus:
        fields: dict[str, Any] = {
            "name": "e2e",
            "enabled": True,
            "received": self._received,
            "delivered": self._received - self.pending_now,
            "dropped": {},
            "dead": 0,
            "pending": self.pending_now,
            "dead_by_reason": {},
            "waiting_bytes": 0,
            "parked_users": {},
            "oldest_parked_s": None,
            "adjusted": {},
            "unknown_attributes": {},
            "event_names": 0,
            "latency_s": {},
            "intercom": None,
        }
        return msgspec.convert(fields, SyncStatus)


async def begun(daemon: OneDaemon) -> DaemonBatches:
    batches = DaemonBatches(daemon, "e2e", now_ms=lambda: NOW_MS)
    await batches.begin()
    return batches


@in_virtual_time
async def test_a_batch_whose_answer_was_lost_is_sent_again_only_where_it_has_not_landed() -> None:
    daemon = OneDaemon({2: True, 3: False, 4: False})
    batches = await begun(daemon)
    for n in range(4):
        ticket = await batches.send(Batch(None, [b"%d" % n]))
        assert (await ticket.wait()).accepted == 1
    assert daemon.taken == [[b"0"], [b"1"], [b"2"], [b"3"]]
    await batches.settled()
    counts = await batches.end()
    assert (counts["received"], counts["delivered"], counts["pending"]) == (4, 4, 0)
    assert daemon.kept == {}


@in_virtual_time
async def test_only_what_is_not_mixed_with_other_events_is_said_to_be_its_own() -> None:
    daemon = OneDaemon()
    batches = await begun(daemon)
    await batches.send(Batch(None, [b"1", b"2"]))
    daemon.traffic, daemon.waits, daemon.pending_now = 5, 3, 1
    assert batches.pending == 2
    await batches.look()
    assert (batches.pending, batches.settled_so_far) == (1, 6)
    await batches.settled()
    counts = await batches.end()
    own = (counts["received"], counts["accepted"], counts["delivered"], counts["pending"])
    assert own == (2, 2, None, 0)
    assert (counts["meanwhile"]["received"], counts["meanwhile"]["delivered"]) == (7, 6)


@in_virtual_time
async def test_what_waits_of_a_sync_that_is_switched_off_is_not_said_to_be_settled() -> None:
    daemon = OneDaemon()
    batches = await begun(daemon)
    await batches.send(Batch(None, [b"1", b"2"]))
    daemon.waits, daemon.pending_now, daemon.delivers = 1_000, 2, False
    await batches.settled()
    assert asyncio.get_running_loop().time() < 1
    assert (await batches.end())["pending"] == 2


@in_virtual_time
async def test_a_run_without_accepted_events_waits_only_for_what_one_before_has_left() -> None:
    daemon = OneDaemon()
    daemon.waits = 1_000
    batches = await begun(daemon)
    loop = asyncio.get_running_loop()
    await batches.settled()
    assert loop.time() < 0.001
    daemon.taken.append([b"of before"])
    await batches.include_earlier()
    await batches.settled()
    assert loop.time() > 900


@in_virtual_time
async def test_the_checkpoint_of_a_killed_run_goes_after_a_day() -> None:
    daemon = OneDaemon()
    old, new = f"{RUN}a", f"{RUN}b"
    daemon.kept = {old: f"7 {NOW_MS - OLD_MS - 1}", new: f"7 {NOW_MS - OLD_MS}", "file": "x"}
    await begun(daemon)
    assert daemon.kept.keys() == {new, "file"}
