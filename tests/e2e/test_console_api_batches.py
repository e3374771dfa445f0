"""Batches that another process hands over to the console's API, at a real port."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amplitude_intercom.engine.console.api_v1.batch_values import MOST_EVENTS
from amplitude_intercom.engine.console.api_v1.handed_batches import MOST_BYTES, MOST_ELEMENTS
from amplitude_intercom.engine.settings import Users
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import Console, Said, console

BATCHES, CHECKPOINTS, PENDING = (
    f"/syncs/e2e/{what}" for what in ("batches", "checkpoints", "pending")
)


def known() -> Sandbox:
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="mira-okafor")
    return local


def event(n: int, **more: Any) -> bytes:
    return json.dumps(process.event("mira-okafor", n, **more)).encode()


def text(raws: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(raw).decode() for raw in raws]


async def hand(api: Console, *raws: bytes, **more: Any) -> Said:
    return await api.ask("POST", BATCHES, {"events": text(raws), **more})


async def taken(api: Console, *raws: bytes, **more: Any) -> Any:
    """Return the receipt of a batch that is taken."""
    said = await hand(api, *raws, **more)
    assert said.status == 200, said
    return said.json


async def delivered(api: Console, batch: int) -> Any:
    """Ask until nothing waits up to a batch."""
    while (facts := await api.get(f"{PENDING}?up_to={batch}"))["waits"]:
        await asyncio.sleep(0)
    return facts


async def test_a_batch_is_delivered_and_its_receipt_says_what_became_of_each_event(
    tmp_path: Path,
) -> None:
    local = known()
    only = {"select": [{"types": ["Purchase"]}], "metadata": ["n"]}
    async with console(tmp_path, local, events=only) as api:
        bad, other = b"\xff no JSON", event(3, event_type="Other")
        receipt = await taken(
            api, event(1), bad, other, event(2), origin="a.jsonl", lines=[4, 5, 6, 7]
        )
        assert receipt == {
            "accepted": 2,
            "dropped": {"not_selected": 1},
            "dead": {"invalid_json": 1},
            "batch": receipt["batch"],
        }
        facts = await delivered(api, receipt["batch"])
        assert (facts["received"], facts["pending"], facts["batch"]) == (4, 0, receipt["batch"])
        assert (facts["delivers"], facts["health"], facts["trouble"]) == (True, "well", "")
        [letter] = await api.pages("/syncs/e2e/dead-letters")
        assert (letter["origin"], letter["line"]) == ("a.jsonl", 5)
        assert await api.audited() == []
    assert [e.metadata["n"] for e in local.events] == [1, 2]


async def test_a_sync_that_changes_while_it_has_work_is_delivered_all_the_time(
    tmp_path: Path,
) -> None:
    """`forward` took such a moment for the end, and left with success."""
    async with console(tmp_path, Sandbox(open_attributes=True, latency_s=0.2)) as api:
        receipt = await taken(api, event(1))
        while not api.engine.streams["e2e"].gate or not api.engine.streams["e2e"].gate.in_flight:
            await asyncio.sleep(0)
        sync = msgspec.structs.replace(api.engine.settings.sync[0], users=Users(enabled=False))
        changed = msgspec.structs.replace(api.engine.settings, sync=[sync])
        change = asyncio.create_task(api.engine.reload(changed))
        while api.engine.streams["e2e"].delivery is not None:
            await asyncio.sleep(0)
        facts = await api.get(f"{PENDING}?up_to={receipt['batch']}")
        assert not change.done()
        assert (facts["waits"], facts["delivers"]) == (True, True)
        await change


async def test_a_batch_that_is_handed_twice_is_delivered_once(tmp_path: Path) -> None:
    local = known()
    without_id = b'{"event_type": "Purchase", "user_id": "mira-okafor", "time": 1700000000000}'
    async with console(tmp_path, local) as api:
        await taken(api, event(1), without_id, b"{")
        again = await taken(api, event(1), without_id, b"{")
        assert (again["dropped"], again["dead"]) == ({"duplicate": 1}, {})
        await delivered(api, again["batch"])
        counters = api.engine.streams["e2e"].spool.counters
        assert (counters["delivered"], counters["dropped:duplicate"]) == (2, 3)
    assert len(local.events) == 2


async def test_checkpoints_are_kept_with_their_batch_and_are_there_at_once(tmp_path: Path) -> None:
    none = {"select": [{"types": ["Other"]}]}
    async with console(tmp_path, events=none) as api:
        receipt = await taken(api, event(1), checkpoints={"run": "1", "file": "x"})
        assert (receipt["accepted"], receipt["dropped"]) == (0, {"not_selected": 1})
        assert await api.pages(CHECKPOINTS) == [
            {"source": "file", "position": "x"},
            {"source": "run", "position": "1"},
        ]
        assert await api.pages(f"{CHECKPOINTS}?source=run") == [{"source": "run", "position": "1"}]
        assert await api.pages(f"{CHECKPOINTS}?source=none") == []
        change = {"forget": ["run", "file"], "keep": {"done": "y"}}
        said = await api.ask("PATCH", CHECKPOINTS, change)
        assert (said.status, said.json) == (200, {"checkpoints": 1})
        assert await api.audited() == [], "runs of `forward` would push changes by people out"
        await taken(api, checkpoints={f"file-{n:03}": str(n) for n in range(120)})
        assert len(await api.pages(f"{CHECKPOINTS}?limit=50")) == 121
    async with console(tmp_path, events=none) as api:
        assert len(await api.pages(CHECKPOINTS)) == 121


async def test_an_event_of_which_only_the_beginning_came_is_too_large(tmp_path: Path) -> None:
    top = {"http": {"listen": "127.0.0.1:0", "max_event_bytes": 10_000}}
    async with console(tmp_path, known(), top=top) as api:
        whole = event(1, padding="x" * 20_000)
        digest = hashlib.blake2b(whole, digest_size=16).digest()
        cut = {"index": 0, "digest": base64.b64encode(digest).decode(), "why": "too long"}
        receipt = await taken(api, whole[:4_096], whole, event(2), cut=[cut])
        assert (receipt["accepted"], receipt["dead"]) == (1, {"too_large": 1})
        assert receipt["dropped"] == {"duplicate": 1}  # whole, it is the same event
        assert (await taken(api, whole))["dropped"] == {"duplicate": 1}


async def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        cut = {"index": 1, "digest": "", "why": ""}
        for more, pointer in (
            ({"lines": [1, 2]}, "/lines"),
            ({"cut": [cut]}, "/cut"),
            ({"events": ["?"]}, "/events/0"),
            ({"events": [""] * (MOST_EVENTS + 1)}, "/events"),
            ({"api_key": "x"}, "/api_key"),
        ):
            said = await hand(api, event(1), **more)
            assert (said.status, said.pointers) == (422, [pointer])
        for path in ("batches", "checkpoints", "pending"):
            method = {"batches": "POST", "checkpoints": "PATCH", "pending": "GET"}[path]
            body: Any = {"events": []} if path == "batches" else {}
            said = await api.ask(method, f"/syncs/none/{path}", None if method == "GET" else body)
            assert said.status == 404
        assert (await api.get(PENDING))["received"] == 0


async def test_a_full_batch_fits_and_a_larger_body_is_refused_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    async with console(tmp_path, known()) as api:
        padded = [event(n, padding="x" * 10_000) for n in range(400)]
        receipt = await taken(api, *padded)
        assert receipt["accepted"] == 400
        body = json.dumps({"events": [""] * (MOST_ELEMENTS + 2)}).encode()
        assert (await api.ask("POST", BATCHES, data=body)).status == 413
        assert (await api.ask("POST", BATCHES, data=bytes(MOST_BYTES + 1))).status == 413
        assert (await api.ask("PATCH", CHECKPOINTS, data=bytes(1_000_001))).status == 413
        assert (await api.get(PENDING))["received"] == 400


@pytest.mark.parametrize("full", [True, False])
async def test_a_spool_that_takes_nothing_says_so_by_its_reason(tmp_path: Path, full: bool) -> None:
    top = {"spool": {"max_bytes": 1_000_000}} if full else {}
    async with console(tmp_path, top=top) as api:
        if not full:
            api.engine.drain()
        said = await hand(api, event(0))
        n = 0
        while full and said.status == 200:
            n += 1
            said = await hand(api, event(n, padding="x" * 100_000))
        reason = "spool_full" if full else "draining"
        assert (said.status, said.json["reason"], said.headers["Retry-After"]) == (503, reason, "1")
        assert (await api.get(PENDING))["received"] == n
        assert ("spool_full" in (await api.get(PENDING))["trouble"]) == full


async def test_what_is_parked_waits_and_is_counted_where_that_is_asked(tmp_path: Path) -> None:
    local = Sandbox()
    async with console(tmp_path, local) as api:
        first = await taken(api, event(1), event(2))
        stranger = (await api.get(PENDING))["batch"]
        assert stranger == first["batch"]
        while (facts := await api.get(f"{PENDING}?parked=true"))["parked"] < 2:
            await asyncio.sleep(0)
        assert (facts["waits"], facts["pending"]) == (True, 2)
        assert (await api.get(f"{PENDING}?up_to={first['batch']}"))["waits"]
        assert not (await api.get(f"{PENDING}?up_to={first['batch'] - 1}"))["waits"]
        assert (await api.get(PENDING))["parked"] is None


async def test_a_third_batch_waits_while_two_are_being_read(tmp_path: Path) -> None:
    """Few are held in memory, however many processes hand over at once."""
    async with console(tmp_path, known()) as api:
        slow = [await half_sent(api, n) for n in range(2)]
        third = asyncio.create_task(hand(api, event(9)))
        for _ in range(20):
            assert (await api.get(PENDING))["received"] == 0
        assert not third.done()
        for reader, writer, rest in slow:
            writer.write(rest)
            assert b" 200 " in await reader.readline()
            writer.close()
        assert (await third).status == 200
        assert (await api.get(PENDING))["received"] == 3


async def half_sent(
    api: Console, n: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Return a connection on which half of a batch is sent, and the other half."""
    host, _, port = api.access.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"events": text([event(n)])}).encode()
    head = (
        f"POST /api/v1{BATCHES} HTTP/1.1\r\nHost: {api.access.address}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[:10])
    for _ in range(5):  # until it is read
        await api.get(PENDING)
    return reader, writer, body[10:]
