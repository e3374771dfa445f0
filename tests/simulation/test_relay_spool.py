"""What waits for Amplitude on disk: damaged, full, left behind, refused, beside syncs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.spool.checksums import letter_checksum
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.sqlite.examine import findings
from amplitude_intercom.transports.errors import Refused, UnknownApiKey
from amplitude_intercom.transports.sandbox.faults import Fault
from support import relaying
from support.relaying import RELAY, by_device, event, request, take_in
from support.virtual import in_virtual_time

DOWN = [Fault(kind="status", status=503)]


async def fill(folder: Path, count: int = 10) -> None:
    """Take requests in that nobody sends on."""
    async with relaying.engine(folder, relaying.amplitude(faults=DOWN)) as engine:
        for n in range(count):
            await take_in(engine, request([event("d1", n), event(f"e{n}", n)]))


def change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "spool.db") as db:
        for statement in statements:
            assert db.execute(statement).rowcount > 0, statement
    db.close()


DAMAGES = (
    "UPDATE relayed SET body = substr(body, 1, 10) WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET request = '{' WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET devices = '[1' WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET devices = '[1,2,3]' WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET api_key = 'else' WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET count = 3 WHERE id = (SELECT min(id) + 2 FROM relayed)",
    "UPDATE relayed SET accepted_at_ms = 0 WHERE id = (SELECT min(id) + 2 FROM relayed)",
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda text: text.split()[3])
@in_virtual_time
async def test_a_damaged_request_costs_itself_and_verify_finds_it(
    tmp_path: Path, damage: str
) -> None:
    await fill(tmp_path)
    change(tmp_path, damage)
    assert {found.table for found in findings(tmp_path / "spool.db")} == {"relayed"}
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local) as engine:
        with anyio.fail_after(600):
            await engine.relayed()
        counters = engine.relays[RELAY].spool.counters
        assert counters["dead:corrupt"] == 2
        assert counters["pending"] == 0
        assert counters["delivered"] == 18
        assert await engine.upkeep.replay(RELAY, DeadLetterQuery(every=True)) == {
            "still dead": counters["dead:corrupt"]
        }
    assert by_device(local.events)["d1"] == [f"d1/{n}" for n in range(10) if n != 2]


@pytest.mark.parametrize("remaining", ["[0, 7]", "[", "[true]", "7"])
@in_virtual_time
async def test_damaged_remains_cost_the_request(tmp_path: Path, remaining: str) -> None:
    await fill(tmp_path)
    where = "WHERE id = (SELECT min(id) + 2 FROM relayed)"
    change(tmp_path, f"UPDATE relayed SET remaining = '{remaining}' {where}")
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local) as engine:
        with anyio.fail_after(600):
            await engine.relayed()
        assert engine.relays[RELAY].spool.counters["delivered"] == 18


@in_virtual_time
async def test_a_letter_that_cannot_be_read_costs_no_other_its_replay(tmp_path: Path) -> None:
    local = relaying.amplitude()
    local.silenced = {"d"}
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(3):
            await take_in(engine, request([event("d", n)]))
        await engine.relayed()
        letters = await engine.upkeep.dead_letters(RELAY, DeadLetterQuery())
    body = b'{"api_key":%b,"events":[{}]}' % (b"9" * 5_000)
    broken = msgspec.structs.replace(letters[1], raw=body)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        crc = letter_checksum(
            broken.id, broken.reason, broken.user_key, broken.accepted_at_ms, body
        )
        change_to = "UPDATE dead_letters SET raw = ?, crc = ? WHERE id = ?"
        assert db.execute(change_to, (body, crc, broken.id)).rowcount == 1
    db.close()
    local.silenced.clear()
    async with relaying.engine(tmp_path, local) as engine:
        every = DeadLetterQuery(every=True)
        assert await engine.upkeep.replay(RELAY, every) == {"replayed": 2, "still dead": 1}
        await engine.relayed()
    assert by_device(local.events)["d"] == ["d/0", "d/2"]


@in_virtual_time
async def test_a_letters_id_that_is_taken_stops_nobody(tmp_path: Path) -> None:
    await fill(tmp_path, count=2)
    change(tmp_path, "UPDATE relayed SET waiting = 2000, count = 7 WHERE id = 1")
    local = relaying.amplitude()
    local.silenced = {"d1", "e1"}
    async with relaying.engine(tmp_path, local) as engine:
        with anyio.fail_after(600):
            while engine.relays[RELAY].spool.counters["dead"] < 2_002:
                await anyio.sleep(1.0)
        assert engine.takers.relays[RELAY].supervisor.faults == 0


@in_virtual_time
async def test_a_batch_without_heads_stands_in_its_devices_lines(tmp_path: Path) -> None:
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(5):
            batch = request([event("d", n), event("e", n)])
            batch.heads = None  # of a source of somebody else, which has not decoded them
            await take_in(engine, batch)
        await engine.relayed()
    assert by_device(local.events)["d"] == [f"d/{n}" for n in range(5)]


@in_virtual_time
async def test_a_relay_that_refuses_lets_nothing_of_a_request_in_once_it_is_full(
    tmp_path: Path,
) -> None:
    top = {"spool": {"max_bytes": 1_000_000}}
    local = relaying.amplitude(faults=list(DOWN))
    async with relaying.engine(tmp_path, local, top=top, when_full="refuse") as engine:
        taken = 0
        with suppress(Refused):
            while taken < 100:
                await take_in(engine, request([event("d", taken, text="x" * 20_000)]))
                taken += 1
        assert 30 < taken < 60
        with pytest.raises(Refused, match="relay `amplitude`"):
            await take_in(engine, request([event("d", taken)]))
        assert engine.streams["simulated"].spool.counters["received"] == taken
        local.faults.clear()
        await engine.relayed()
        await take_in(engine, request([event("d", taken)]))
        await engine.relayed()
    assert by_device(local.events)["d"] == [f"d/{n}" for n in range(taken + 1)]


@in_virtual_time
async def test_requests_of_a_relay_that_has_gone_are_said_and_can_be_dropped(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local, name="another") as engine:
        left = (await engine.status()).spool.left
        assert {name: there.pending for name, there in left.items()} == {RELAY: 20}
        with pytest.raises(SettingsError, match="no sync can have"):
            await engine.upkeep.move_left(RELAY, "simulated")
        assert await engine.upkeep.drop_left(RELAY) == 20
        assert (await engine.status()).spool.left == {}
        assert (await engine.status()).spool.waiting_bytes == 0
    assert findings(tmp_path / "spool.db") == []
    assert local.events == []


@in_virtual_time
async def test_a_disabled_relay_takes_nothing_and_sends_its_waiting_requests(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local, enabled=False) as engine:
        await take_in(engine, request([event("d1", 10)]))
        await engine.relayed()
        with pytest.raises(UnknownApiKey):
            await take_in(engine, request([event("d1", 11)], key="of-the-relay-alone"))
    assert len(local.events) == 20


@pytest.mark.parametrize("keys", [["simulated"], ["*"], ["simulated", "other"]])
@in_virtual_time
async def test_only_requests_with_its_keys_are_relayed(tmp_path: Path, keys: Sequence[str]) -> None:
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local, amplitude_api_keys=list(keys)) as engine:
        await take_in(engine, request([event("d1", 1)]))
        without = request([event("d1", 2)])
        without.original = None  # from a file, say, or Amplitude's own webhook
        await take_in(engine, without)
        try:
            await take_in(engine, request([event("d1", 3)], key="third"))
        except UnknownApiKey:
            assert "*" not in keys
        await engine.relayed()
    taken = ["d1/1", "d1/3"] if "*" in keys else ["d1/1"]
    assert [stored.event["insert_id"] for stored in local.events] == taken


@in_virtual_time
async def test_a_request_that_cannot_be_taken_apart_goes_whole_and_costs_no_other(
    tmp_path: Path,
) -> None:
    local = relaying.amplitude()
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(6):
            batch = request([event("d1", n)])
            if n == 2 and batch.original is not None:  # nothing that an endpoint took
                broken = type(batch.original)("POST", "/batch", "", "", b"[]")
                batch.original = broken
            await take_in(engine, batch)
        with anyio.fail_after(600):
            await engine.relayed()
        counters = engine.relays[RELAY].spool.counters
        assert (counters["delivered"], counters["dead:amplitude_refused"]) == (5, 1)
    assert by_device(local.events)["d1"] == [f"d1/{n}" for n in range(6) if n != 2]
