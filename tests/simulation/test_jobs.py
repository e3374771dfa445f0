"""Replays and discards are rows: done in slices, resumed where they were, cancelled, counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from amplitude_intercom.engine import DeadLetterQuery, Engine, SettingsError
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.job_slices import SLICE, replay
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.verdicts import Verdict
from amplitude_intercom.engine.spool.job_requests import ask_job
from amplitude_intercom.engine.spool.jobs import JobKind, JobRow, JobState, NewMapping
from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.engine.spool.spool import Spool, Work
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.reasons import RefusalReason
from support import simulation
from support.admissions import an_admission
from support.spools import OneSync, kept, opened, recount
from support.virtual import in_virtual_time

T = TypeVar("T")
SYNC = "simulated"
LETTERS = 3 * SLICE + 7
ALL = DeadLetterQuery(every=True)


async def bury(running: Engine, count: int = LETTERS, first: int = 0) -> None:
    """Bring events that die at intake: their user ids are none."""
    raws = [
        b'{"event_type": "Purchase", "user_id": "unknown", "insert_id": "%d"}' % n
        for n in range(first, first + count)
    ]
    ticket = await running.intake.send(Batch(None, raws, sync=SYNC, origin="pipe"))
    assert (await ticket.wait()).dead == count


async def letters(running: Engine) -> list[DeadLetter]:
    return await running.upkeep.dead_letters(SYNC, ALL, limit=100 * SLICE)


async def dead(running: Engine) -> int:
    counters = running.streams[SYNC].spool.counters
    found = await running.spool.do(
        lambda store: recount(store, running.streams[SYNC].spool.taker)["dead"]
    )
    assert counters["dead"] == found
    return found


@in_virtual_time
async def test_a_job_is_done_in_slices_between_which_others_have_their_turn(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running)
        left: list[int] = []

        async def watch() -> None:
            while not left or left[-1]:
                left.append(await dead(running))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            assert await running.upkeep.discard(SYNC, ALL) == LETTERS
        steps = [before - after for before, after in pairwise(left)]
        assert max(steps) <= SLICE
        assert running.streams[SYNC].spool.counters["dropped:discarded"] == LETTERS


@in_virtual_time
async def test_a_job_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running)
        job = await running.jobs.ask(JobKind.DISCARD, SYNC, ALL, who="test", why="a trial")
        while await dead(running) == LETTERS:
            await anyio.lowlevel.checkpoint()
        running.cancel()
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running, 5, LETTERS)  # these came later: they are not meant
        ended = await running.jobs.ended(job.id)
        assert (ended.state, ended.counts) == (JobState.DONE, {"discarded": LETTERS})
        assert (ended.expected, ended.who, ended.why) == (LETTERS, "test", "a trial")
        assert running.streams[SYNC].spool.counters["dropped:discarded"] == LETTERS


@in_virtual_time
async def test_a_job_covers_the_letters_that_failed_within_its_time(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        for first in (0, LETTERS, 2 * LETTERS):
            await bury(running, LETTERS, first)
            await anyio.sleep(60)
        times = sorted({letter.last_failed_at_ms for letter in await letters(running)})
        middle = DeadLetterQuery(since_ms=times[0] + 1, until_ms=times[-1])
        assert await running.upkeep.discard(SYNC, middle) == LETTERS
        assert {letter.last_failed_at_ms for letter in await letters(running)} == {
            times[0],
            times[-1],
        }
        assert await running.upkeep.discard(SYNC, middle) == 0
        assert await dead(running) == 2 * LETTERS


@in_virtual_time
async def test_a_job_does_not_cover_later_letters_though_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    """Else a letter that is replayed and dies again would be replayed for ever."""

    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        taker = running.streams[SYNC].spool.taker

        def set_ahead(store: Store) -> JobRow:
            store.db.execute("UPDATE dead_letters SET last_failed_at_ms = 1 << 50")
            return ask_job(store, JobKind.DISCARD, taker, ALL, 3, who="test", now_ms=1)

        await bury(running, 3)
        job = await running.spool.do(set_ahead)
        await bury(running, 5, 3)
        running.spool.job_added()
        ended = await running.jobs.ended(job.id)
        assert (ended.state, ended.counts) == (JobState.DONE, {"discarded": 3})
        assert await dead(running) == 5


@in_virtual_time
async def test_a_cancelled_job_keeps_its_work_and_does_no_more(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running)
        job = await running.jobs.ask(JobKind.DISCARD, SYNC, ALL, who="test")
        while await dead(running) == LETTERS:
            await anyio.lowlevel.checkpoint()
        assert await running.jobs.cancel(job.id)
        left = await dead(running)
        await anyio.sleep(60)
        assert await dead(running) == left > 0
        ended = await running.jobs.ended(job.id)
        assert ended.state is JobState.CANCELLED
        assert sum(ended.counts.values()) == LETTERS - left
        assert not await running.jobs.cancel(job.id)


@in_virtual_time
async def test_an_empty_condition_means_nothing_and_no_ids_are_none(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running, 3)
        assert await running.upkeep.discard(SYNC, DeadLetterQuery()) == 0
        assert await running.upkeep.discard(SYNC, DeadLetterQuery(ids=[])) == 0
        assert await running.upkeep.replay(SYNC, DeadLetterQuery()) == {}
        assert await dead(running) == 3


@in_virtual_time
async def test_a_replay_of_a_disabled_sync_is_refused_and_the_letters_stay(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running, 3)
    async with simulation.engine(tmp_path, simulation.sandbox(), enabled=False) as running:
        with pytest.raises(SettingsError, match="disabled"):
            await running.upkeep.replay(SYNC, ALL)
        assert await dead(running) == 3


@in_virtual_time
async def test_a_job_that_cannot_be_done_fails_and_those_behind_it_are_done(tmp_path: Path) -> None:
    """What it asks for cannot be read: the engine goes on, after a restart too."""

    def plant(store: Store) -> None:
        store.jobs.add(lambda id_: JobRow(id_, JobKind.REPLAY, SYNC, ALL, "1-9", 3, "test", "", 1))
        store.db.execute("UPDATE jobs SET query = '{'")

    def mend(store: Store) -> None:
        store.db.execute('UPDATE jobs SET query = \'{"of": "dead_letters"}\' WHERE id = 1')

    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running, 3)
        await running.spool.do(plant)
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        assert await running.upkeep.discard(SYNC, ALL) == 3
        await running.spool.do(mend)
        failed = await running.jobs.get(1)
        assert failed is not None
        with pytest.raises(SpoolError, match="job 1 met a fault"):
            failed.outcome()


def test_of_thirty_letters_one_that_meets_a_fault_of_ours_stays_dead(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    raws = [b'{"event_type": "Bought", "user_id": "user-1", "n": %d}' % n for n in range(30)]
    sync.append(*[kept("user-1", raw) for raw in raws])
    found = sync.load(limit=30, per_user=30).records
    sync.store.begin()
    for record in found:
        sync.settling.bury(record, Failure(DeadReason.USER_FAILING, 500), 1)
    sync.store.commit()
    letters = sync.store.letters.find(sync.taker, ALL)
    admission = an_admission()

    class Brittle(Admission):
        def __init__(self) -> None:
            pass

        def judge(
            self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
        ) -> Verdict[Admitted]:
            if raw == raws[7]:
                raise ValueError(10**5_000)
            return admission.judge(head, raw)

    sync.store.begin()
    counts = replay(sync.store, sync.taker, letters, Brittle(), 1)
    sync.store.commit()
    assert counts == {"replayed": 29, "still dead": 1}
    assert [letter.raw for letter in sync.store.letters.find(sync.taker, ALL)] == [raws[7]]


@in_virtual_time
async def test_jobs_are_listed_the_latest_first(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        made: list[JobRow] = []
        for _ in range(3):
            made.append(await running.jobs.ask(JobKind.REPLAY, SYNC, ALL, who="test"))
        await running.jobs.ended(made[-1].id)
        assert [job.id for job in await running.jobs.latest()] == [3, 2, 1]
        assert await running.jobs.get(99) is None


@in_virtual_time
async def test_a_stranger_s_thousands_of_events_expire_together_and_not_bit_by_bit(
    tmp_path: Path,
) -> None:
    """More than one transaction takes: the first retry behind the window ends all of them."""
    count, window_s = 3 * SLICE + 7, 3_600.0
    delivery = {"retry_attempts": 4, "retry_window_s": window_s}

    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local, delivery=delivery) as running:
        events = [simulation.event("stranger", n) for n in range(count)]
        await running.submit(events, api_key=simulation.API_KEY)
        await anyio.sleep(2 * window_s)
        [job] = await running.jobs.latest()
        assert (job.kind, job.state, job.who) == (JobKind.EXPIRE, JobState.DONE, "delivery")
        counters = running.streams[SYNC].spool.counters
        assert counters["dead:user_not_found"] == await dead(running) == count
        assert counters["pending"] == 0
    assert len(simulation.made(local)) <= 2 * 4


def test_a_stranger_signing_up_while_its_events_expire_has_the_rest_of_them(
    tmp_path: Path,
) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    failure = Failure(DeadReason.USER_NOT_FOUND, 404)
    sync.append(*[kept("ann") for _ in range(2 * SLICE)])
    head = sync.load(limit=1).records[0]
    sync.store.begin()
    sync.settling.park(head, (), failure, 10, 1)
    sync.store.commit()
    while sync.load(limit=SLICE).more:
        pass
    sync.store.begin()
    assert sync.settling.expire("ann", failure, 1, 2) == (SLICE, True)
    sync.store.users.forgive(sync.taker, "ann")
    assert sync.settling.expire("ann", failure, 1, 2) == (0, False)
    sync.store.commit()
    assert (sync.counters["dead"], sync.counters["pending"]) == (SLICE, SLICE)


@in_virtual_time
async def test_a_replay_of_a_sync_that_was_disabled_since_leaves_the_letters(
    tmp_path: Path,
) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running)
        job = await running.jobs.ask(JobKind.REPLAY, SYNC, ALL, who="test")
        running.cancel()
    async with simulation.engine(tmp_path, simulation.sandbox(), enabled=False) as running:
        ended = await running.jobs.ended(job.id)
        assert ended.counts == {"still dead": LETTERS}
        assert await dead(running) == LETTERS


@in_virtual_time
async def test_a_job_that_ended_and_is_damaged_stops_nothing(tmp_path: Path) -> None:
    """Neither the list of jobs nor the next start, though the mapping has changed."""
    email = {"identifier": "email", "from": "event.mail"}

    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        events = [simulation.event("stranger", n) for n in range(3)]
        await running.submit(events, api_key=simulation.API_KEY)
        await anyio.sleep(20)
    async with simulation.engine(tmp_path, simulation.sandbox(), mapping=email) as running:
        await running.settled()
        await running.submit(events, api_key=simulation.API_KEY)
        await running.spool.do(lambda store: store.db.execute("UPDATE jobs SET query = '{'"))
        assert await running.jobs.latest() == []
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        assert await dead(running) == 3


def test_a_rekeying_goes_before_earlier_jobs(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    store, query = sync.store, NewMapping("email", "user_id")
    store.begin()
    ask_job(store, JobKind.DISCARD, sync.taker, ALL, 1, who="test", now_ms=1)
    ask_job(store, JobKind.REKEY, sync.taker, query, 1, who="test", now_ms=1)
    first = store.jobs.next()
    assert first is not None
    assert first.kind is JobKind.REKEY
    assert store.jobs.fail_first(1) == first.id
    second = store.jobs.next()
    assert second is not None
    assert second.kind is JobKind.DISCARD
    store.commit()


class FlakySpool(Spool):
    """One whose disk fails in the second slice of a job, and is well again at once."""

    def __init__(self, spool: Spool) -> None:
        self.__dict__ = spool.__dict__
        self.asked = 0

    async def do(self, work: Work[T]) -> T:
        self.asked += 1
        if self.asked == 2:
            raise SpoolError(RefusalReason.SPOOL_FAILING, "as the test says")
        return await super().do(work)


@in_virtual_time
async def test_a_disk_that_failed_for_a_moment_fails_no_job(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        await bury(running)
        running.jobs.end()  # another one does what is asked for
        runner = JobRunner(FlakySpool(running.spool), running.takers, lambda: 1)
        taker = running.streams[SYNC].spool.taker
        await running.spool.do(
            lambda store: ask_job(store, JobKind.DISCARD, taker, ALL, 1, who="test", now_ms=1)
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run)
            with anyio.fail_after(60):
                while await dead(running):
                    await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        assert [job.state for job in await running.jobs.latest()] == [JobState.DONE]
