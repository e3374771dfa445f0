"""Torn and flipped bytes: what is whole is delivered, what is not is noticed and named."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import load
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.batches import SLOTS, Kept
from amplitude_intercom.engine.spool.connection import Damaged
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Held, Known
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.rows import Append
from amplitude_intercom.engine.spool.sqlite.examine import Damage, findings
from amplitude_intercom.engine.spool.sqlite.spool_file import PAGE_BYTES
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.spools import OneSync, kept, opened, part_of

UNREADABLE = (SpoolError, sqlite3.Error, UnicodeDecodeError, Damaged)
"""How the store says that it cannot read on; the daemon names it."""

FRAME_BYTES = 24 + PAGE_BYTES
"""A frame of the write-ahead log: its header and a page (sqlite.org/fileformat2.html)."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of spools are opened in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def row(n: int) -> Kept:
    raw = json.dumps({"user_id": f"user-{n % 7}", "event_type": "Purchase", "n": n, "x": "y" * 400})
    return kept(f"user-{n % 7}", raw.encode(), key=b"key %d" % n)


def read_all(sync: OneSync) -> list[Record]:
    """Load the whole queue."""
    records: list[Record] = []
    last_id = 0
    while True:
        found = sync.load(last_id, now_ms=2, limit=64, per_user=1_000)
        records += found.records
        last_id = found.last_id
        if not found.more:
            return records


def _tear(folder: Path, step: int) -> int:
    """Cut the log at every ``step``-th byte of its last frame; return how often."""
    whole = folder / "whole.db"
    sync = OneSync(opened(whole))
    for n in range(8):
        sync.append(row(n))
    torn = folder / "torn.db"
    log = Path(f"{whole}-wal").read_bytes()
    assert len(log) % FRAME_BYTES == 32
    cuts = [*range(len(log) - FRAME_BYTES, len(log), step), len(log)]
    for length in cuts:
        shutil.copy(whole, torn)
        Path(f"{torn}-wal").write_bytes(log[:length])
        left = OneSync(opened(torn))
        raws = [record.raw for record in read_all(left)]
        assert raws == [row(n).raw for n in range(8 if length == len(log) else 7)]
        left.store.close()
    sync.store.close()
    return len(cuts)


def test_a_torn_log_keeps_all_earlier_batches(
    folder: Path, measured: Callable[[str], None]
) -> None:
    measured(f"log cut at {_tear(folder, 41)} bytes of its last frame: all earlier batches intact")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_log_torn_at_every_byte_keeps_all_earlier_batches(
    folder: Path, measured: Callable[[str], None]
) -> None:
    measured(f"log cut at {_tear(folder, 1)} bytes of its last frame: all earlier batches intact")


A_BATCH = 50


def _filled(path: Path) -> dict[int, tuple[str, bytes]]:
    """Write a spool with some of everything; return what waits, by id.

    Half of the batches are unpacked, and the first of their records is a dead letter.
    """
    sync = OneSync(opened(path))
    waiting: dict[int, tuple[str, bytes]] = {}
    for batch in range(1, 7):
        rows = [row(n) for n in range((batch - 1) * A_BATCH, batch * A_BATCH)]
        sync.append(*rows)
        waiting |= {batch * SLOTS + slot: (e.user_key, e.raw) for slot, e in enumerate(rows)}
    first, *_ = sync.load(limit=3 * A_BATCH, per_user=1_000).records
    store = sync.store
    store.begin()
    dead = [DeadRow("invalid_json", "no", b"{" * 300, None, "f", n) for n in range(20)]
    store.append([Append([part_of(dead=dead)])], 1)
    for n in range(40):
        properties = {str(sync.taker): {"plan": Held("pro" * 20, 1)}}
        known = Known(f"id-{n}", fields={"name": "Ann"}, properties=properties)
        store.contacts.remember(ContactKey(1, "external_id", f"known-{n}"), known, 1)
    sync.settling.bury(first, Failure(DeadReason.REFUSED, 400), 2)
    store.commit()
    store.close()
    del waiting[first.id]
    return waiting


def _outcome(path: Path, expected: dict[int, tuple[str, bytes]]) -> str:
    """Read a damaged spool; return what became of it. Nothing is missed without a word."""
    try:
        named = findings(path)
    except SpoolError as error:
        named = [Damage("file", "", str(error))]
    try:
        sync = OneSync(opened(path))
    except UNREADABLE:
        return "refused, and named"
    letters = sync.store.letters
    try:
        records = read_all(sync)
        found = letters.find(sync.taker, DeadLetterQuery(reason="corrupt"))
        letters.find(sync.taker, DeadLetterQuery())
    except UNREADABLE:
        assert named
        return "partly unreadable, and named"
    finally:
        sync.store.close()
    corrupt = {letter.id for letter in found}
    for record in records:
        assert expected[record.id] == (record.user_key, record.raw), "delivered what was never sent"
    missing = expected.keys() - {record.id for record in records}
    assert missing <= corrupt or named, "missing without a word"
    if missing & corrupt:
        assert named
        return "dead letter, and named"
    return "named" if named else "harmless"


def _flip(folder: Path, flips: int, seed: int) -> str:
    whole, damaged = folder / "whole.db", folder / "damaged.db"
    expected = _filled(whole)
    content = whole.read_bytes()
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(flips):
        at = dice.randrange(len(content))
        flipped = bytes([content[at] ^ 1 << dice.randrange(8)])
        damaged.write_bytes(content[:at] + flipped + content[at + 1 :])
        outcomes[_outcome(damaged, expected)] += 1
        for path in folder.glob("damaged.db*"):
            path.unlink()
    assert outcomes["dead letter, and named"] > flips / 5
    told = ", ".join(f"{count} {what}" for what, count in outcomes.most_common())
    return f"{flips} flipped bits: {told}; 0 wrong events, 0 missing without a word"


def test_a_flipped_bit_is_noticed_wherever_it_is(
    folder: Path, measured: Callable[[str], None]
) -> None:
    measured(_flip(folder, 250, seed=1))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_flipped_bits_are_noticed_wherever_they_are(
    folder: Path, measured: Callable[[str], None]
) -> None:
    measured(_flip(folder, 10_000, seed=2))


@pytest.mark.parametrize(("unpacked", "table"), [(True, "records"), (False, "inbox")])
async def test_a_damaged_record_is_a_dead_letter_and_the_rest_is_delivered(
    tmp_path: Path, unpacked: bool, table: str
) -> None:
    """Without delivery, batches stay packed."""
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    nowhere = process.settings(tmp_path, "http://127.0.0.1:9")
    events = [process.event("mira-okafor", n, amount=f"sum-{n}") for n in range(10)]
    async with Engine(load(nowhere), deliver=False) as engine:
        await engine.submit(events, api_key=process.API_KEY)
    if unpacked:
        async with process.daemon(nowhere) as daemon:
            while (await daemon.status())["intercom"]["health"] != "outage":
                pass
    file = tmp_path / "data" / "spool.db"
    content = file.read_bytes()
    assert content.count(b"sum-3") == 1
    file.write_bytes(content.replace(b"sum-3", b"sum-4"))
    damage = {"table": table, "key": str(SLOTS + 3), "problem": "its checksum does not match"}
    code, out, _ = await process.run("spool", "verify", "-c", str(nowhere), "--json")
    assert (code, json.loads(out)) == (1, [damage])
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        status = await daemon.settled()
    assert (status["delivered"], status["dead_by_reason"]) == (9, {"corrupt": 1})
    code, out, _ = await process.run("dead-letters", "replay", "-c", str(nowhere), "--json")
    assert (code, json.loads(out)["counts"]) == (0, {"still dead": 1})
