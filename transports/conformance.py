"""The contract of a source as checks that any source must pass (``transports.contract``).

Your test builds the source and its outside; each check then drives both:

    @pytest.mark.parametrize("check", conformance.CHECKS)
    @pytest.mark.parametrize("seed", range(5))
    async def test_my_source_keeps_the_contract(check, seed):
        await check(MyOutside, seed)

The numbers are those of the contract. A failed check raises ``AssertionError`` with the number and
the seed. The checks need only this package.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, Protocol

import msgspec

from amplitude_intercom.transports.contract import Batch, Receipt, Source, Ticket
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

PATIENCE_S: Final = 30.0
EVENTS: Final = 60


class Outside(Protocol):
    """The other side of a source: it has events, and is told which are on disk.

    ``ends``: the source ends by itself when all offered events are on disk, and confirms them by
    ending; any other runs until it is cancelled, and confirms each piece.
    """

    source: Source
    ends: bool

    async def offer(self, ids: Sequence[str]) -> None:
        """Bring one event for each of these insert ids, in this order, until all are taken.

        Events that the source refuses for now are brought again, as its clients do. Returns when
        all are taken; where the source ``ends``, when all are brought.
        """
        ...

    def confirmed(self) -> set[str]:
        """Return the confirmed ids, without those that only the source's end confirms."""
        ...


MakeOutside = Callable[[], AbstractAsyncContextManager[Outside]]
Check = Callable[[MakeOutside, int], Awaitable[None]]


def event(insert_id: str) -> bytes:
    """Return the event that stands for an id."""
    return msgspec.json.encode(
        {"event_type": "Conformance", "user_id": "conformance-user", "insert_id": insert_id}
    )


class Recorder:
    """An intake that notes acknowledged events, and refuses, holds or breaks off at random.

    ``refuse``: share of batches refused, half of them at once and half with their ticket.
    """

    def __init__(self, seed: int, *, refuse: float = 0.0) -> None:
        self.random = random.Random(seed)  # noqa: S311 - to repeat a check, not to keep a secret
        self.handed_over: list[str] = []
        """Ids as they were sent."""
        self.taken: list[str] = []
        """Ids that are "on disk"."""
        self.sent = 0
        self.held: asyncio.Event = asyncio.Event()
        self.held.set()
        self.something_sent = asyncio.Event()
        self._refuse = refuse
        self._answers: set[asyncio.Task[None]] = set()

    async def send(self, batch: Batch) -> Ticket:
        """Take a batch, and answer it in its turn (``contract.Intake``)."""
        self.sent += 1
        ids = [msgspec.json.decode(raw)["insert_id"] for raw in batch.raws]
        self.handed_over.extend(ids)
        self.something_sent.set()
        await asyncio.sleep(0)
        refuses = self.random.random() < self._refuse
        if refuses and self.random.random() < 0.5:
            raise Refused(RefusalReason.SPOOL_FULL)
        ticket = Ticket()
        answer = asyncio.create_task(self._answer(ids, ticket, refuses))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        return ticket

    def takes(self, api_key: str) -> bool:
        """Take every key (``contract.Intake``)."""
        return True

    async def _answer(self, ids: Sequence[str], ticket: Ticket, refuses: bool) -> None:
        await self.held.wait()
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if refuses:
            ticket.refuse(Refused(RefusalReason.SPOOL_FULL))
            return
        self.taken.extend(ids)
        ticket.acknowledge(Receipt(len(ids), 0, 0))

    async def close(self) -> None:
        """Answer the batches that are still held."""
        self.held.set()
        while self._answers:
            await asyncio.wait(self._answers)


# --- the checks ---------------------------------------------------------------------------


async def check_1_batches_come_whole_and_in_order(make: MakeOutside, seed: int) -> None:
    """1: offered events are handed over, each once, in the order of offering."""
    ids, intake = _ids(seed), Recorder(seed)
    async with make() as outside:
        await _run(outside, intake, ids)
        _hold(1, seed, intake.handed_over == ids, f"offered {ids}, sent {intake.handed_over}")


async def check_2_nobody_is_told_before_it_is_on_disk(make: MakeOutside, seed: int) -> None:
    """2: the outside is told "done" after the receipt, never before; and then it is told."""
    ids, intake = _ids(seed), Recorder(seed)
    intake.held.clear()
    async with make() as outside, _running(outside, intake, ids) as work:
        await _while_running(work, intake.something_sent.wait())
        await _turns(200)
        confirmed = _confirmed(outside, work, ids)
        _hold(2, seed, not confirmed, f"confirmed {confirmed} before anything was on disk")
        await intake.close()
        await _wait_for(work)
        confirmed = _confirmed(outside, work, ids)
        _hold(2, seed, confirmed == set(ids), f"confirmed {confirmed} of {ids}")


async def check_3_what_is_refused_is_kept_and_sent_again(make: MakeOutside, seed: int) -> None:
    """3: a refused batch is told as "later", or sent again; in the end nothing is missing."""
    ids, intake = _ids(seed), Recorder(seed, refuse=0.4)
    async with make() as outside:
        await _run(outside, intake, ids)
        missing = set(ids) - set(intake.taken)
        _hold(3, seed, not missing, f"missing after refusals: {missing}")
        again = len(intake.taken) - len(set(intake.taken))
        _hold(3, seed, not again, f"{again} events came twice though none was in doubt")


async def check_4_cancelled_it_ends_and_claims_nothing(make: MakeOutside, seed: int) -> None:
    """4: cancelled at any moment it ends, sends no more, and has confirmed nothing that is not
    taken; offered once more to a new one, all of it arrives."""
    ids, intake = _ids(seed), Recorder(seed, refuse=0.2)
    rest = ids
    async with make() as outside, _running(outside, intake, ids) as work:
        await _while_running(work, intake.something_sent.wait())
        await _turns(intake.random.randrange(400))
        work.cancel()
        await asyncio.wait([work], timeout=PATIENCE_S)
        _hold(4, seed, work.done(), "it does not end though it is cancelled")
        sent = intake.sent
        await intake.close()
        await _turns(50)
        _hold(4, seed, intake.sent == sent, "it sends though it has been cancelled")
        confirmed = _confirmed(outside, work, ids)
        claimed = confirmed - set(intake.taken)
        _hold(4, seed, not claimed, f"confirmed {claimed}, which are not stored")
        rest = [id_ for id_ in ids if id_ not in confirmed]
    second = Recorder(seed)
    async with make() as outside:
        await _run(outside, second, rest)
    missing = set(ids) - set(intake.taken) - set(second.taken)
    _hold(4, seed, not missing, f"lost with the cancelled one: {missing}")


async def check_5_it_leaves_nothing_behind(make: MakeOutside, seed: int) -> None:
    """5: when ``run`` has returned, none of its tasks is left."""
    before = asyncio.all_tasks()
    intake = Recorder(seed, refuse=0.2)
    async with make() as outside:
        await _run(outside, intake, _ids(seed))
    await intake.close()
    await _turns(50)
    left = asyncio.all_tasks() - before
    _hold(5, seed, not left, f"tasks that are left: {left}")


CHECKS: Final[tuple[Check, ...]] = (
    check_1_batches_come_whole_and_in_order,
    check_2_nobody_is_told_before_it_is_on_disk,
    check_3_what_is_refused_is_kept_and_sent_again,
    check_4_cancelled_it_ends_and_claims_nothing,
    check_5_it_leaves_nothing_behind,
)


# --- driving ------------------------------------------------------------------------------


def _hold(number: int, seed: int, kept: bool, what: str) -> None:
    if not kept:
        raise AssertionError(f"contract {number}, seed {seed}: {what}")


def _ids(seed: int) -> list[str]:
    return [f"{seed}-{n}" for n in range(EVENTS)]


def _confirmed(outside: Outside, work: asyncio.Task[None], ids: Sequence[str]) -> set[str]:
    """Return the ids that are believed to be safe, by the source's own end too."""
    ended_well = work.done() and not work.cancelled() and work.exception() is None
    return outside.confirmed() | (set(ids) if outside.ends and ended_well else set())


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _run(outside: Outside, intake: Recorder, ids: Sequence[str]) -> None:
    async with _running(outside, intake, ids) as work:
        await _wait_for(work)
    await intake.close()


@asynccontextmanager
async def _running(
    outside: Outside, intake: Recorder, ids: Sequence[str]
) -> AsyncIterator[asyncio.Task[None]]:
    """Let a source run while its outside offers; yield the whole of it as one task."""
    work = asyncio.create_task(_work(outside, intake, ids))
    try:
        yield work
    finally:
        work.cancel()
        await asyncio.wait([work])
        await intake.close()


async def _work(outside: Outside, intake: Recorder, ids: Sequence[str]) -> None:
    running = asyncio.create_task(outside.source.run(intake))
    offering = asyncio.create_task(outside.offer(ids))
    try:
        await asyncio.wait([running, offering], return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not outside.ends:
            running.result()
            raise AssertionError("it ended without being cancelled")
        await offering
        if outside.ends:
            await running
    finally:
        for task in (offering, running):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _while_running(work: asyncio.Task[None], something: Awaitable[object]) -> None:
    """Wait for something that has to happen while the source runs."""
    waiting = asyncio.ensure_future(something)
    await asyncio.wait([work, waiting], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _wait_for(work: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait([work], timeout=PATIENCE_S)
    if not done:
        raise AssertionError(f"it is not done after {PATIENCE_S} s")
    work.result()
