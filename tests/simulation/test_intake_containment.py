"""A fault at intake costs the event it belongs to: others of its batch are kept, and answered."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from amplitude_intercom.engine.actor import RUN_BYTES, Actor
from amplitude_intercom.engine.actors.filter import FilterActor
from amplitude_intercom.engine.actors.source import Share, Tally
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Verdict
from amplitude_intercom.engine.settings import Delivery, SpoolSettings, Sync
from amplitude_intercom.engine.spool.rows import Append, Appended, DeadLetterQuery
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.transports import Batch, Receipt, Ticket
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason
from support import simulation, virtual

KEY = simulation.API_KEY


def raw(user: str, n: int = 0) -> bytes:
    return msgspec.json.encode(simulation.event(user, n))


class BrokenAdmission(Admission):
    def judge(
        self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
    ) -> Verdict[Admitted]:
        if b"poison" in raw:
            raise OverflowError(10**5_000)
        return super().judge(head, raw, checked=checked)


class BrokenSpool(Spool):
    """Cannot append the rows of some users, nor ``dead`` letters where it is told so."""

    cannot_bury = False

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        if any("poison" in row.user_key for row in batch.rows) or (batch.dead and self.cannot_bury):
            future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            future.set_exception(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "unforeseen"))
            return future
        return super().append(batch)


async def take_in(
    folder: Path, kind: type[Admission], spool_kind: type[Spool], *raws: bytes
) -> Any:
    """Send one batch through a filter actor; return spool counters, reasons, and the receipt."""
    sync: Sync = simulation.settings(folder).sync[0]
    rules = SyncRules(sync)
    spool = spool_kind(
        folder / "s.db",
        SpoolSettings(),
        Delivery(),
        max_in_flight=8,
        now_ms=virtual.current().wall_ms,
        inline=True,
    )
    send, receive = anyio.create_memory_object_stream[Share](1)
    ticket = Ticket()
    with send, receive:
        async with anyio.create_task_group() as tasks:
            actor = FilterActor(kind(sync, rules.who, rules.contacts), spool)
            tasks.start_soon(actor.run, receive)
            batch = Batch(None, raws, sync=sync.name, origin="pipe", lines=range(1, len(raws) + 1))
            await send.send(Share(batch, Tally(ticket, 1)))
            send.close()
        try:
            answer: Receipt | Refused = await ticket.wait()
        except Refused as error:
            answer = error
        letters = await spool.do(lambda store: store.letters.find(DeadLetterQuery()))
    counters = spool.counters
    await spool.close()
    return counters, [(letter.reason, letter.line) for letter in letters], answer


class Watched(Admission):
    """Counts the bytes that are judged between two turns of the loop."""

    judged_bytes = 0
    worst_bytes = 0

    def judge(
        self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
    ) -> Verdict[Admitted]:
        if not self.judged_bytes:
            asyncio.get_running_loop().call_soon(self._turn)
        self.judged_bytes += len(raw)
        self.worst_bytes = max(self.worst_bytes, self.judged_bytes)
        if b"poison" in raw:
            raise OverflowError(10**5_000)
        return super().judge(head, raw, checked=checked)

    def _turn(self) -> None:
        self.judged_bytes = 0


@pytest.mark.parametrize("poisoned", [False, True])
def test_others_have_their_turn_while_a_large_batch_is_filtered(
    tmp_path: Path, poisoned: bool
) -> None:
    async def scenario() -> None:
        sync = simulation.settings(tmp_path).sync[0]
        rules = SyncRules(sync)
        decide = Watched(sync, rules.who, rules.contacts)
        users = [f"poison-{n}" if poisoned and n % 5 == 0 else f"well-{n}" for n in range(40)]
        raws = [msgspec.json.encode(simulation.event(u, 0, x="x" * 240_000)) for u in users]
        batch = Batch(None, raws, sync=sync.name, lines=range(1, 41))
        kept = await FilterActor(decide, cast("Any", None)).admit(batch)
        assert [row.user_key for row in kept.rows] == [u for u in users if u.startswith("well")]
        assert [letter.line for letter in kept.dead] == (list(range(1, 41, 5)) if poisoned else [])
        assert decide.worst_bytes <= RUN_BYTES * (2 if poisoned else 1)

    virtual.run(scenario)


def test_a_small_batch_is_filtered_in_one_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        sync = simulation.settings(tmp_path).sync[0]
        rules = SyncRules(sync)
        decide = Watched(sync, rules.who, rules.contacts)
        raws = [raw(f"well-{n}") for n in range(500)]
        await FilterActor(decide, cast("Any", None)).admit(Batch(None, raws, sync=sync.name))
        assert decide.judged_bytes == sum(map(len, raws))

    virtual.run(scenario)


MIXED = [raw(user) for n in range(30) for user in (f"well-{n}", f"poison-{n}")]


def test_a_fault_in_judging_costs_each_event_that_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        counters, letters, receipt = await take_in(tmp_path, BrokenAdmission, Spool, *MIXED)
        assert letters == [("internal", line) for line in range(2, 61, 2)]
        assert receipt == Receipt(30, 0, 0, 30)
        assert (counters["received"], counters["pending"], counters["dead"]) == (60, 30, 30)

    virtual.run(scenario)


def test_a_fault_in_appending_costs_each_event_that_has_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        counters, letters, receipt = await take_in(tmp_path, Admission, BrokenSpool, *MIXED)
        assert letters == [("internal", line) for line in range(2, 61, 2)]
        assert receipt == Receipt(30, 0, 0, 30)
        assert (counters["received"], counters["pending"], counters["dead"]) == (60, 30, 30)

    virtual.run(scenario)


class CannotBury(BrokenSpool):
    """Cannot keep dead letters either, the first ten times that it is asked to."""

    tries = 10

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        if batch.dead:
            self.tries -= 1
        self.cannot_bury = self.tries >= 0
        return super().append(batch)


def without_insert_id(user: str) -> bytes:
    return msgspec.json.encode({"user_id": user, "event_type": "Purchase", "time": 1_700_000_000})


def test_where_not_even_a_dead_letter_can_be_kept_the_batch_is_refused(tmp_path: Path) -> None:
    """Nothing of it is stored then, so that it comes again and nothing is there twice."""
    raws = [without_insert_id(user) for user in ("poison-1", "well-1", "well-2")]

    async def scenario() -> None:
        counters, letters, answer = await take_in(tmp_path, Admission, CannotBury, *raws)
        assert isinstance(answer, Refused)
        assert answer.reason == "internal"
        assert letters == []
        assert (counters["received"], counters["pending"], counters["dead"]) == (0, 0, 0)

    virtual.run(scenario)


def test_a_batch_of_which_some_is_stored_is_not_refused(tmp_path: Path) -> None:
    raws = [without_insert_id(f"{kind}-{n}") for n in range(9) for kind in ("well", "poison")]

    async def scenario() -> None:
        counters, letters, answer = await take_in(tmp_path, Admission, CannotBury, *raws)
        assert answer == Receipt(9, 0, 0, 9)
        assert letters == [("internal", line) for line in range(2, 19, 2)]
        assert (counters["received"], counters["pending"], counters["dead"]) == (18, 9, 9)

    virtual.run(scenario)


class FullForAWhile(BrokenSpool):
    """Has space for a few events, and for more of them only some seconds later."""

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        if self.counters["pending"] >= 4 and virtual.current().now_s < 30:
            future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
            future.set_exception(SpoolError(RefusalReason.SPOOL_FULL))
            return future
        return super().append(batch)


def test_the_rest_of_a_batch_waits_for_a_full_spool(tmp_path: Path) -> None:
    raws = [without_insert_id(f"{kind}-{n}") for n in range(9) for kind in ("well", "poison")]

    async def scenario() -> None:
        counters, _, answer = await take_in(tmp_path, Admission, FullForAWhile, *raws)
        assert answer == Receipt(9, 0, 0, 9)
        assert (counters["received"], counters["pending"], counters["dead"]) == (18, 9, 9)
        assert virtual.current().now_s >= 30

    virtual.run(scenario)


def test_a_mended_event_s_dead_letter_names_its_line(tmp_path: Path) -> None:
    mended = b'{"user_id": "poison-1", "event_type": "Purchase", "event_properties": {"n": NaN}}'

    async def scenario() -> None:
        _, letters, _ = await take_in(tmp_path, Admission, BrokenSpool, raw("well-1"), mended)
        assert letters == [("internal", 2)]

    virtual.run(scenario)


# --- a fault that belongs to no event ------------------------------------------------------


class Torn(MemoryObjectReceiveStream[Share]):
    """A channel from which nothing can be received any more, once something has been."""

    is_torn = True

    async def receive(self) -> Share:
        if Torn.is_torn:
            raise RuntimeError("no event is to blame")
        return await super().receive()


def test_while_an_intake_stands_events_are_refused_and_nobody_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        local = simulation.sandbox()
        local.add_contact(external_id="mira-okafor")
        answers: list[Receipt | Refused] = []

        async def submit(n: int) -> None:
            try:
                event = simulation.event("mira-okafor", n)
                answers.append(await running.submit([event], api_key=KEY))
            except Refused as refused:
                answers.append(refused)

        async with simulation.engine(tmp_path, local) as running:
            pipeline = running.pipelines["simulated"]
            await submit(0)
            pipeline._shares.__class__ = Torn
            Torn.is_torn = True
            with anyio.fail_after(0.5):
                async with anyio.create_task_group() as tasks:
                    for n in range(1, 100):
                        tasks.start_soon(submit, n)
            refused = [answer for answer in answers if isinstance(answer, Refused)]
            assert len(answers) == 100
            assert len(refused) >= 98
            assert {result.reason for result in refused} == {"internal"}
            assert running.unready == {"simulated": "internal"}
            assert "no event is to blame" in running.stopped["simulated"]
            with anyio.fail_after(0.1), pytest.raises(Refused, match="no event is to blame"):
                await running.submit([simulation.event("mira-okafor", 100)], api_key=KEY)
            Torn.is_torn = False
            await anyio.sleep(2)
            assert (running.unready, running.stopped) == ({}, {})
            await submit(101)
            await running.settled()
        stored = [answer for answer in answers if isinstance(answer, Receipt)]
        assert answers[-1] in stored
        assert len(local.events) == sum(receipt.accepted for receipt in stored) == len(stored)

    virtual.run(scenario)


# --- what an actor keeps ------------------------------------------------------------------


class Item:
    """Something to handle that can be watched."""


class Idle(Actor[Item, None]):
    async def handle(self, item: Item) -> None:
        """Do nothing with it."""


@pytest.mark.parametrize("count", [1, 3])
def test_an_actor_keeps_no_reference_to_what_it_has_handled(count: int) -> None:
    async def scenario() -> None:
        send, receive = anyio.create_memory_object_stream[Item](4)
        watched = []
        with send, receive:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Idle().run, receive)
                for _ in range(count):
                    item = Item()
                    watched.append(weakref.ref(item))
                    send.send_nowait(item)
                    del item
                await anyio.sleep(1)
                gc.collect()
                assert [reference() for reference in watched] == [None] * count
                send.close()

    virtual.run(scenario)
