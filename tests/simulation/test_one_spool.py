"""One spool for all syncs: what they share, and what each has to itself."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from amplitude_intercom.engine import DeadLetterQuery, Engine, Refused, SettingsError, SpoolError
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.metrics import render
from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.status import LeftSync
from amplitude_intercom.transports.contract import batch_of
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

KEYS = {"shop": ["shared", "shop-only"], "mail": ["shared"]}


def engine(
    folder: Path,
    local: Sandbox,
    syncs: list[str],
    max_bytes: int = 10**9,
    user_from: str = "user_id",
) -> Engine:
    table = {
        "data_dir": str(folder),
        "spool": {"max_bytes": max_bytes, "reserve_bytes": 0},
        "sync": [
            {
                "name": name,
                "amplitude_api_keys": KEYS[name],
                "intercom": {"access_token": f"token-{name}"},
                "mapping": {"from": user_from},
                "events": {
                    "select": [{"types": ["*"]}],
                    "metadata": ["n"],
                    "unknown_user": "create",
                },
            }
            for name in syncs
        ],
    }
    clock = virtual.current()
    return Engine(
        from_table(table), wire=lambda _: InProcess(local), now_ms=clock.wall_ms, inline=True
    )


def event(number: int, size: int = 1) -> dict[str, object]:
    return simulation.event("mira-okafor", number, text="x" * size)


async def fill(running: Engine) -> Refused:
    """Submit events for one sync until they are refused."""
    for number in range(1_000):
        try:
            await running.submit([event(number, 100_000)], api_key="shop-only")
        except Refused as refused:
            return refused
    raise AssertionError("it is never full")


@in_virtual_time
async def test_a_batch_of_two_syncs_reaches_both_in_one_commit(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with engine(tmp_path, local, ["shop", "mail"]) as running:
        receipt = await running.submit([event(n) for n in range(20)], api_key="shared")
        assert (receipt.accepted, receipt.dropped, receipt.dead) == (40, 0, 0)
        await running.settled()
        delivered = {s.name: s.delivered for s in (await running.status()).syncs}
    assert delivered == {"shop": 20, "mail": 20}


def stop_delivery(running: Engine, *syncs: str) -> None:
    """Let nothing of these syncs leave from now on."""
    for name in syncs:
        delivery = running.streams[name].delivery
        assert delivery is not None
        delivery.feed.stop()


@in_virtual_time
async def test_a_full_sync_closes_a_shared_key_and_says_so_and_nobody_else_s_door(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    async with engine(tmp_path, local, ["shop", "mail"], 2_000_000) as running:
        stop_delivery(running, *running.streams)
        refused = await fill(running)
        assert refused.reason == "spool_full"
        assert "sync `shop`" in str(refused)
        before = running.streams["mail"].spool.counters
        with pytest.raises(Refused, match="sync `shop`"):
            await running.submit([event(0)], api_key="shared")
        assert running.streams["mail"].spool.counters == before
        receipt = await running.submit([event(0)], sync="mail")
        assert receipt.accepted == 1
        assert running.overview.ready
        assert running.overview.unready == {"shop": "spool_full"}


@in_virtual_time
async def test_a_sync_that_left_the_settings_with_events_waiting_is_named(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with engine(tmp_path, local, ["shop", "mail"]) as running:
        stop_delivery(running, *running.streams)
        await running.submit([event(n) for n in range(7)], api_key="shared")
    async with engine(tmp_path, local, ["mail"]) as running:
        await running.settled()
        status = await running.status()
        assert status.spool.left == {"shop": LeftSync(7, 0)}
        said = render(status, ready=True).decode()
        assert 'left_events{sync="shop"} 7.0' in said
    async with engine(tmp_path, local, ["shop", "mail"]) as running:
        await running.settled()
        assert (await running.status()).spool.left == {}
    assert len(local.events) == 7  # the same event twice is one to Intercom


@in_virtual_time
async def test_after_the_end_nothing_waits_for_an_answer(tmp_path: Path) -> None:
    local = simulation.sandbox(limit_per_minute=6)
    async with anyio.create_task_group() as tasks:
        ended: list[str] = []

        async def settle() -> None:
            with pytest.raises(Refused, match="draining"):
                await running.settled()
            ended.append("settled")

        async with engine(tmp_path, local, ["shop"]) as running:
            await running.submit([event(n) for n in range(50)], api_key="shared")
            tasks.start_soon(settle)
            await anyio.sleep(1)
            running.cancel()
    assert ended == ["settled"]
    with anyio.fail_after(1), pytest.raises(SpoolError, match="closed"):
        await running.upkeep.discard("shop", DeadLetterQuery())


async def leave(folder: Path, local: Sandbox, events: int, dead: int = 0) -> None:
    """Let a sync stop with events that wait, some unpacked and some not, and dead letters."""
    async with engine(folder, local, ["shop", "mail"]) as running:
        stop_delivery(running, "shop")
        await running.submit([event(n) for n in range(events // 2)], sync="shop")
        await running.spool.do(
            lambda store: store.queue(running.streams["shop"].spool.taker).load(
                Wanted(limit=500, limit_bytes=1 << 20, per_user=500, now_ms=0)
            )
        )
        await running.submit([event(n) for n in range(events // 2, events)], sync="shop")
        bad = [
            b'{"event_type": "Purchase", "user_id": "unknown", "n": %d}' % n for n in range(dead)
        ]
        ticket = await running.intake.send(batch_of(bad, sync="shop"))
        await ticket.wait()


@in_virtual_time
async def test_the_backlog_of_a_removed_sync_moves_to_another_in_order(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await leave(tmp_path, local, events=1_400, dead=700)
    async with engine(tmp_path, local, ["mail"]) as running:
        assert (await running.status()).spool.left == {"shop": LeftSync(1_400, 700)}
        assert await running.upkeep.move_left("shop", "mail") == 2_100
        await running.settled()
        status = await running.status()
        [mail] = status.syncs
        assert status.spool.left == {}
        assert (mail.received, mail.delivered, mail.dead) == (2_100, 1_400, 700)
        groups = await running.spool.do(
            lambda store: store.letters.groups.of(running.streams["mail"].spool.taker)
        )
        assert [group.count for group in groups] == [700]
        assert await running.upkeep.move_left("shop", "mail") == 0
    assert [stored.metadata["n"] for stored in local.events] == list(range(1_400))


@in_virtual_time
async def test_moved_records_are_keyed_by_the_mapping_of_the_other_sync(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await leave(tmp_path, local, events=3, dead=0)
    async with engine(tmp_path, local, ["mail"], user_from="event.n") as running:
        assert await running.upkeep.move_left("shop", "mail") == 3
        await running.settled()
    assert {c.external_id for c in local.contacts.values()} == {"0", "1", "2"}


@in_virtual_time
async def test_a_sync_with_a_new_name_knows_the_old_one_s_events_again(tmp_path: Path) -> None:
    local = simulation.sandbox()
    events = [event(n) for n in range(700)]
    async with engine(tmp_path, local, ["shop"]) as running:
        await running.submit(events, api_key="shared")
        await running.settled()
    async with engine(tmp_path, local, ["mail"]) as running:
        await running.submit(events[:3], api_key="shared")
        await running.settled()
        assert await running.upkeep.move_left("shop", "mail") == 0
        await running.submit(events, api_key="shared")
        await running.settled()
        [mail] = (await running.status()).syncs
        assert (mail.delivered, mail.dropped) == (3, {"duplicate": 700})


@in_virtual_time
async def test_the_backlog_of_a_removed_sync_can_be_dropped(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await leave(tmp_path, local, events=1_400, dead=700)
    async with engine(tmp_path, local, ["mail"]) as running:
        assert await running.upkeep.drop_left("shop") == 2_100
        assert (await running.status()).spool.left == {}
        counters = await running.spool.do(
            lambda store: store.accounts.committed(store.takers.id_for("shop"))
        )
        assert (counters["received"], counters["dropped:discarded"]) == (2_100, 2_100)
        (rows,) = await running.spool.do(
            lambda store: store.db.execute(
                "SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM records)"
                " + (SELECT count(*) FROM users) + (SELECT count(*) FROM dead_letters)"
            ).fetchone()
        )
        assert rows == 0
    assert local.events == []


@in_virtual_time
async def test_only_syncs_that_left_the_settings_are_moved_or_dropped(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with engine(tmp_path, local, ["shop", "mail"]) as running:
        with pytest.raises(SettingsError, match="in the settings"):
            await running.upkeep.drop_left("shop")
        with pytest.raises(SettingsError, match="knows no sync `nobody`"):
            await running.upkeep.drop_left("nobody")
    async with engine(tmp_path, local, ["mail"]) as running:
        with pytest.raises(SettingsError, match="there is mail"):
            await running.upkeep.move_left("shop", "nobody")


@in_virtual_time
async def test_a_spool_that_fills_says_when_it_will_be_full(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with engine(tmp_path, local, ["shop"], 100_000_000) as running:
        assert (await running.status()).spool.full_in_s is None
        stop_delivery(running, "shop")
        for minute in range(5):
            await running.submit([event(minute, 1_000_000 // 5)] * 5, sync="shop")
            await anyio.sleep(60)
        status = (await running.status()).spool
        assert 5_000_000 < status.waiting_bytes < 5_100_000
        # 5 MB in 10 minutes: the other 95 take 190 minutes
        assert status.full_in_s == pytest.approx(190 * 60, rel=0.03)
