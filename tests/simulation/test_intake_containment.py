"""A fault at intake costs the event it belongs to: others of its batch are kept, and answered."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.actor import RUN_BYTES, Actor
from amplitude_intercom.engine.actors.filter import FilterActor
from amplitude_intercom.engine.actors.offers import Offer, SyncFilter
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep, Verdict
from amplitude_intercom.engine.spool.batches import entries_of
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.records import Records
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.contract import Batch, Receipt, Ticket
from amplitude_intercom.transports.errors import Refused
from support import simulation, virtual
from support.stand_in import StandIn, in_place_of
from support.virtual import in_virtual_time

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


class UnencodableUsers(Admission):
    """Finds keys of users that no database can keep."""

    def judge(
        self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
    ) -> Verdict[Admitted]:
        verdict = super().judge(head, raw, checked=checked)
        if b"poison" in raw and isinstance(verdict, Keep):
            kind, user = verdict.value
            return Keep((kind, f"{user}\udcff"))
        return verdict


class CannotAppend(Spool):
    """Cannot append anything, for a reason that nobody foresaw."""

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        future.set_exception(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "unforeseen"))
        return future


async def take_in(
    folder: Path, kind: type[Admission], spool_kind: type[Spool], *raws: bytes
) -> Any:
    """Send one batch through a filter actor; return spool counters, reasons, and the receipt."""
    settings = simulation.settings(folder)
    [sync] = settings.sync
    rules = SyncRules(sync)
    spool = spool_kind(folder, settings, now_ms=virtual.current().wall_ms, inline=True)
    part = (await spool.open_for([sync.name]))[sync.name]
    send, receive = anyio.create_memory_object_stream[Offer](1)
    ticket = Ticket()
    with send, receive:
        async with anyio.create_task_group() as tasks:
            sync_filter = SyncFilter(sync.name, kind(sync, rules.user_keys, rules.contacts))
            actor = FilterActor(spool)
            tasks.start_soon(actor.run, receive)
            batch = Batch(None, raws, sync=sync.name, origin="pipe", lines=range(1, len(raws) + 1))
            await send.send(Offer(batch, (sync_filter,), ticket))
            send.close()
        try:
            answer: Receipt | Refused = await ticket.wait()
        except Refused as error:
            answer = error
        letters = await spool.do(lambda store: store.letters.find(part.taker, DeadLetterQuery()))
    counters = part.counters
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
@in_virtual_time
async def test_others_have_their_turn_while_a_large_batch_is_filtered(
    tmp_path: Path, poisoned: bool
) -> None:
    sync = simulation.settings(tmp_path).sync[0]
    rules = SyncRules(sync)
    decide = Watched(sync, rules.user_keys, rules.contacts)
    users = [f"poison-{n}" if poisoned and n % 5 == 0 else f"well-{n}" for n in range(40)]
    raws = [msgspec.json.encode(simulation.event(u, 0, x="x" * 240_000)) for u in users]
    batch = Batch(None, raws, sync=sync.name, lines=range(1, 41))
    sync_filter = SyncFilter(sync.name, decide)
    kept = await FilterActor(cast("Any", None)).admit(batch, sync_filter)
    entries = [entry for pack in kept.packs for entry in entries_of(pack.index)]
    assert [entry.user_key for entry in entries] == [u for u in users if u.startswith("well")]
    assert [letter.line for letter in kept.dead] == (list(range(1, 41, 5)) if poisoned else [])
    assert decide.worst_bytes <= RUN_BYTES * (2 if poisoned else 1)


@in_virtual_time
async def test_a_small_batch_is_filtered_in_one_go(tmp_path: Path) -> None:
    sync = simulation.settings(tmp_path).sync[0]
    rules = SyncRules(sync)
    decide = Watched(sync, rules.user_keys, rules.contacts)
    raws = [raw(f"well-{n}") for n in range(500)]
    sync_filter = SyncFilter(sync.name, decide)
    batch = Batch(None, raws, sync=sync.name)
    await FilterActor(cast("Any", None)).admit(batch, sync_filter)
    assert decide.judged_bytes == sum(map(len, raws))


MIXED = [raw(user) for n in range(30) for user in (f"well-{n}", f"poison-{n}")]


@in_virtual_time
async def test_a_fault_in_judging_costs_each_event_that_has_it(tmp_path: Path) -> None:
    counters, letters, receipt = await take_in(tmp_path, BrokenAdmission, Spool, *MIXED)
    assert letters == [("internal", line) for line in range(2, 61, 2)]
    assert receipt == Receipt(30, 0, 30, {}, {"internal": 30})
    assert (counters["received"], counters["pending"], counters["dead"]) == (60, 30, 30)


@in_virtual_time
async def test_a_fault_in_packing_costs_each_event_that_has_it(tmp_path: Path) -> None:
    counters, letters, receipt = await take_in(tmp_path, UnencodableUsers, Spool, *MIXED)
    assert letters == [("internal", line) for line in range(2, 61, 2)]
    assert receipt == Receipt(30, 0, 30, {}, {"internal": 30})
    assert (counters["received"], counters["pending"], counters["dead"]) == (60, 30, 30)


@in_virtual_time
async def test_a_batch_that_cannot_be_appended_is_refused(tmp_path: Path) -> None:
    """Nothing of it is stored then, so that it comes again and nothing is there twice."""

    counters, letters, answer = await take_in(tmp_path, Admission, CannotAppend, *MIXED)
    assert isinstance(answer, Refused)
    assert answer.reason == "internal"
    assert letters == []
    assert (counters["received"], counters["pending"], counters["dead"]) == (0, 0, 0)


class BrokenRecords(Records):
    """Cannot keep the records of some users."""

    def insert(
        self, taker: int, rows: Sequence[tuple[Record, int, int]], aside: AbstractSet[int]
    ) -> None:
        super().insert(taker, rows[:1], aside)
        if any("poison" in record.user_key for record, *_ in rows):
            raise OverflowError("too large for a database")
        super().insert(taker, rows[1:], aside)


class BrokenStore(Store):
    """Has records that are broken."""

    def __init__(self, db: Connection, limits: Limits, **more: Any) -> None:
        super().__init__(db, limits, **more)
        self.records = BrokenRecords(db)


@in_virtual_time
async def test_a_fault_in_unpacking_costs_each_event_that_has_it(tmp_path: Path) -> None:
    """The events are acknowledged by then, and every one of them is accounted for."""

    local = simulation.sandbox()
    for n in range(30):
        local.add_contact(external_id=f"well-{n}")
    async with simulation.engine(tmp_path, local, store_type=BrokenStore) as running:
        events = [simulation.event(u, n) for n in range(30) for u in (f"well-{n}", f"poison-{n}")]
        receipt = await running.submit(events, api_key=KEY)
        assert receipt == Receipt(60, 0, 0)
        await running.settled()
        counters = running.streams["simulated"].spool.counters
    arrived = {local.contacts[event.contact_id].external_id for event in local.events}
    assert arrived == {f"well-{n}" for n in range(30)}
    assert (counters["delivered"], counters["dead:internal"], counters["pending"]) == (
        30,
        30,
        0,
    )


# --- a fault that belongs to no event ------------------------------------------------------


class Torn(StandIn):
    """A channel from which nothing can be received while ``is_torn``."""

    is_torn = False

    async def receive(self) -> Any:
        if self.is_torn:
            raise RuntimeError("no event is to blame")
        return await self.original.receive()


@in_virtual_time
async def test_while_an_intake_stands_events_are_refused_and_nobody_waits(tmp_path: Path) -> None:
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
        torn = Torn(running._taking_in._offers)
        running._taking_in._offers = in_place_of(running._taking_in._offers, lambda _: torn)
        await submit(0)
        torn.is_torn = True
        with anyio.fail_after(0.5):
            async with anyio.create_task_group() as tasks:
                for n in range(1, 100):
                    tasks.start_soon(submit, n)
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert len(answers) == 100
        assert len(refused) >= 98
        assert {result.reason for result in refused} == {"internal"}
        assert running.overview.unready == {"simulated": "internal"}
        assert "no event is to blame" in running.overview.stopped["simulated"]
        with anyio.fail_after(0.1), pytest.raises(Refused, match="no event is to blame"):
            await running.submit([simulation.event("mira-okafor", 100)], api_key=KEY)
        torn.is_torn = False
        await anyio.sleep(2)
        assert (running.overview.unready, running.overview.stopped) == ({}, {})
        await submit(101)
        await running.settled()
    stored = [answer for answer in answers if isinstance(answer, Receipt)]
    assert answers[-1] in stored
    assert len(local.events) == sum(receipt.accepted for receipt in stored) == len(stored)


# --- what an actor keeps ------------------------------------------------------------------


class Item:
    """Something to handle that can be watched."""


class Idle(Actor[Item, None]):
    async def handle(self, item: Item) -> None:
        """Do nothing with it."""


@pytest.mark.parametrize("count", [1, 3])
@in_virtual_time
async def test_an_actor_keeps_no_reference_to_a_handled_item(count: int) -> None:
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
