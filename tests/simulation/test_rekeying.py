"""After a change of ``[sync.mapping]`` what waits goes to the contacts that it names now."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine import DeadLetterQuery, Engine, SettingsError
from amplitude_intercom.engine.spool.jobs import JobKind, JobState
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.contract import Receipt
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

SYNC = "simulated"
BY_EMAIL = {"identifier": "email", "from": "event.mail"}
USERS = 30
EACH = 40


def engine(folder: Path, local: Sandbox, *, deliver: bool = True, **sync: Any) -> Engine:
    loop = virtual.current()
    return Engine(
        simulation.settings(folder, **sync),
        wire=lambda intercom: InProcess(local),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        jitter=lambda: 0.5,
        inline=True,
        deliver=deliver,
    )


def event(user: int, n: int) -> dict[str, Any]:
    properties = {"n": n, "mail": f"User-{user}@example.com", "alias": f"alias-{user}"}
    return simulation.event(f"user-{user}", n, event_properties=properties)


async def submit(running: Engine, numbers: range) -> Receipt:
    events = [event(user, n) for n in numbers for user in range(USERS)]
    return await running.submit(events, api_key=simulation.API_KEY)


async def fill(folder: Path) -> None:
    """Let half of the events wait for users whom nobody knows, and half of them be packed."""
    strangers = simulation.sandbox()
    async with engine(folder, strangers, mapping=BY_EMAIL) as running:
        await submit(running, range(EACH // 2))
        await anyio.sleep(300)  # what waits has taken its bytes along by then
        assert (await running.status()).syncs[0].parked_users == {"user_not_found": USERS}
        running.cancel()
    async with engine(folder, strangers, deliver=False, mapping=BY_EMAIL) as running:
        await submit(running, range(EACH // 2, EACH))
        nobodys = simulation.event(
            "", EACH, device_id="device-1", event_properties={"mail": "a@b.example"}
        )
        del nobodys["user_id"]
        await running.submit([nobodys], api_key=simulation.API_KEY)


def known() -> Sandbox:
    local = simulation.sandbox()
    for user in range(USERS):
        local.add_contact(external_id=f"user-{user}")
    return local


def check_order(local: Sandbox) -> None:
    """Every user has its own events, in order, and none twice."""
    sent: dict[str, list[int]] = {f"user-{user}": [] for user in range(USERS)}
    for entry in simulation.made(local):
        body = msgspec.json.decode(entry.body)
        sent[body["user_id"]].append(body["metadata"]["n"])
    assert sent == {user: list(range(EACH)) for user in sent}


@in_virtual_time
async def test_waiting_records_are_sent_to_the_user_of_todays_mapping(tmp_path: Path) -> None:
    await fill(tmp_path)
    local = known()
    async with engine(tmp_path, local) as running:
        await running.settled()
        status = (await running.status()).syncs[0]
        assert status.delivered == USERS * EACH
        assert status.dead_by_reason == {"invalid_identity": 1}  # it names nobody now
        assert status.rekeying == 0
        [job] = await running.jobs.latest()
        assert (job.kind, job.state) == (JobKind.REKEY, JobState.DONE)
        assert job.expected == USERS * EACH + 1 == job.counts["rekeyed"]
        assert await running.upkeep.replay(SYNC, DeadLetterQuery(every=True)) == {"still dead": 1}
    check_order(local)


@in_virtual_time
async def test_nothing_is_sent_before_that_is_done_and_a_kill_does_not_forget_it(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    local = known()
    async with engine(tmp_path, local) as running:
        job_id = running.jobs.rekeying[SYNC]
        with pytest.raises(SettingsError, match="delivers nothing before"):
            await running.jobs.cancel(job_id)
        while not (await running.jobs.latest())[0].counts:
            await anyio.lowlevel.checkpoint()
        assert (await running.status()).syncs[0].rekeying == job_id
        delivery = running.streams[SYNC].delivery
        assert delivery is not None
        assert delivery.loaded.held == 0
        assert simulation.made(local) == []
        running.cancel()
    async with engine(tmp_path, local) as running:
        assert running.jobs.rekeying == {SYNC: job_id}
        await running.settled()
    check_order(local)


@in_virtual_time
async def test_a_mapping_that_changes_back_halfway_is_followed_too(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with engine(tmp_path, known()) as running:
        while not (await running.jobs.latest())[0].counts:
            await anyio.lowlevel.checkpoint()
        running.cancel()
    local = simulation.sandbox()
    for user in range(USERS):
        local.add_contact(email=f"user-{user}@example.com")
    async with engine(tmp_path, local, mapping=BY_EMAIL) as running:
        await running.settled()
        back, forth = await running.jobs.latest()
        assert (back.state, forth.state) == (JobState.DONE, JobState.CANCELLED)
        status = (await running.status()).syncs[0]
        assert (status.delivered, status.pending) == (USERS * EACH, 0)


@in_virtual_time
async def test_a_mapping_that_stays_asks_for_nothing(tmp_path: Path) -> None:
    await fill(tmp_path)
    async with engine(tmp_path, simulation.sandbox(), mapping=BY_EMAIL) as running:
        assert running.jobs.rekeying == {}
        assert await running.jobs.latest() == []


BY_ALIAS = {"from": "event.alias"}
BY_USER: dict[str, str] = {}


async def keys(folder: Path) -> set[str]:
    """Return the keys of the users whose records wait, once they are those of their ids."""
    async with engine(folder, simulation.sandbox(), deliver=False, mapping=BY_USER) as running:
        while running.jobs.rekeying:
            await anyio.lowlevel.checkpoint()

        def waiting(store: Store) -> set[str]:
            taker = store.takers.known_id(SYNC)
            found = store.records.first(taker, USERS * EACH * 2, 0)
            records = store.ends(taker).intact(found)
            batches = store.inbox.next(taker, store.takers.unpacked_to(taker), 1_000, 1 << 30)
            packed = {entry.user_key for batch in batches for entry in batch.entries or ()}
            # An event without a user has none, or is a dead letter by now.
            return ({record.user_key for record in records} | packed) - {""}

        return await running.spool.do(waiting)


async def caught_halfway(running: Engine, folder: Path) -> None:
    """Ask for a third mapping while records get the keys of the second; return once the daemon has
    taken it over, and has not yet noted it on disk."""
    while not (await running.jobs.latest())[0].counts:
        await anyio.lowlevel.checkpoint()
    [before] = await running.jobs.latest()
    reload = asyncio.create_task(running.reload(simulation.settings(folder, mapping=BY_ALIAS)))
    while running.settings.sync[0].mapping.source != "event.alias":
        await anyio.lowlevel.checkpoint()
    after = (await running.jobs.latest())[0]
    while not reload.done() and after.id == before.id and after.counts == before.counts:
        await anyio.lowlevel.checkpoint()
        after = (await running.jobs.latest())[0]
    running.cancel()
    await asyncio.wait([reload])


@in_virtual_time
async def test_a_kill_during_a_third_change_leaves_no_record_under_its_keys(
    tmp_path: Path,
) -> None:
    """The file has the second mapping again when the daemon comes back."""
    await fill(tmp_path)
    async with engine(tmp_path, simulation.sandbox(), deliver=False, mapping=BY_EMAIL) as running:
        for n in range(200):  # a slice each
            await running.submit([event(n % USERS, EACH + n)], api_key=simulation.API_KEY)
    async with engine(tmp_path, simulation.sandbox(), mapping=BY_USER) as running:
        await caught_halfway(running, tmp_path)
    assert await keys(tmp_path) == {f"user-{user}" for user in range(USERS)}


@pytest.mark.parametrize("seed", range(6))
@in_virtual_time
async def test_whatever_changes_meanwhile_records_end_under_the_last_mapping(
    tmp_path: Path, seed: int
) -> None:
    """Mappings change by reloads and by restarts, each before the one before is done."""
    dice = random.Random(seed)
    await fill(tmp_path)
    local = known()
    ways = [BY_USER, BY_EMAIL, BY_ALIAS]
    for _ in range(4):
        async with engine(tmp_path, simulation.sandbox(), mapping=dice.choice(ways)) as running:
            for _ in range(dice.randrange(3)):
                for _ in range(dice.randrange(12)):
                    await anyio.lowlevel.checkpoint()
                new = simulation.settings(tmp_path, mapping=dice.choice(ways))
                reload = asyncio.create_task(running.reload(new))
                if dice.random() < 0.7:
                    await reload
            for _ in range(dice.randrange(12)):
                await anyio.lowlevel.checkpoint()
            running.cancel()
    assert await keys(tmp_path) == {f"user-{user}" for user in range(USERS)}
    async with engine(tmp_path, local, mapping=BY_EMAIL) as running:
        await running.reload(simulation.settings(tmp_path, mapping=BY_ALIAS))
        await running.reload(simulation.settings(tmp_path, mapping=BY_USER))
        await running.settled()
        assert (await running.status()).syncs[0].delivered == USERS * EACH
    check_order(local)
