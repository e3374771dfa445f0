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

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure, SpoolError
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.examine import Damage, findings
from amplitude_intercom.engine.spool.rows import Append, Contact, DeadLetterQuery, DeadRow, Row
from amplitude_intercom.engine.spool.schema import PAGE_BYTES, connect
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.sandbox import Sandbox, serve
from support import process

FRAME_BYTES = 24 + PAGE_BYTES
"""A frame of the write-ahead log: its header and a page (sqlite.org/fileformat2.html)."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of spools are opened in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def opened(path: Path) -> Store:
    return Store(connect(path), max_bytes=1 << 30, window_ms=1_000)


def commit(store: Store, *rows: Row, dead: list[DeadRow] | None = None) -> None:
    store.begin()
    store.append([Append(len(rows) + len(dead or []), list(rows), dead or [], Counter())], 1)
    store.commit()


def row(n: int) -> Row:
    raw = json.dumps({"user_id": f"user-{n % 7}", "event_type": "Purchase", "n": n, "x": "y" * 400})
    return Row(Kind.EVENT, f"user-{n % 7}", raw.encode(), b"key %d" % n)


def read_all(store: Store) -> list[Record]:
    """Load the whole queue."""
    records: list[Record] = []
    last_id = 0
    while True:
        store.begin()
        found = store.load(
            last_id,
            limit=64,
            limit_bytes=1 << 20,
            per_user=1_000,
            crowded=(),
            halted=(),
            now_ms=2,
        )
        store.commit()
        records += found.records
        last_id = found.last_id
        if not found.more:
            return records


def _tear(folder: Path, step: int) -> int:
    """Cut the log at every ``step``-th byte of its last frame; return how often."""
    whole = folder / "whole.db"
    store = opened(whole)
    for n in range(8):
        commit(store, row(n))
    torn = folder / "torn.db"
    log = Path(f"{whole}-wal").read_bytes()
    assert len(log) % FRAME_BYTES == 32
    cuts = [*range(len(log) - FRAME_BYTES, len(log), step), len(log)]
    for length in cuts:
        shutil.copy(whole, torn)
        Path(f"{torn}-wal").write_bytes(log[:length])
        left = opened(torn)
        raws = [record.raw for record in read_all(left)]
        assert raws == [row(n).raw for n in range(8 if length == len(log) else 7)]
        left.close()
    store.close()
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


def _filled(path: Path) -> dict[int, tuple[str, bytes]]:
    """Write a spool with some of everything; return what waits, by id."""
    store = opened(path)
    for start in range(0, 300, 50):
        commit(store, *(row(n) for n in range(start, start + 50)))
    commit(store, dead=[DeadRow("invalid_json", "no", b"{" * 300, None, "f", n) for n in range(20)])
    store.begin()
    for n in range(40):
        known = Contact(f"id-{n}", {"plan": "pro" * 20}, {"custom_attributes": {"plan": "pro"}})
        store.contacts.remember(f"known-{n}", known, 1)
    store.bury(Record(1, Kind.EVENT, "user-0", 1, row(0).raw), Failure(DeadReason.REFUSED, 400), 2)
    store.commit()
    records = {record.id: (record.user_key, record.raw) for record in read_all(store)}
    store.close()
    assert len(records) == 299
    return records


def _outcome(path: Path, expected: dict[int, tuple[str, bytes]]) -> str:
    """Read a damaged spool; return what became of it. Nothing is missed without a word."""
    try:
        named = findings(path)
    except SpoolError as error:
        named = [Damage("file", "", str(error))]
    try:
        store = opened(path)
    except (SpoolError, sqlite3.Error, UnicodeDecodeError):
        return "refused, and named"
    try:
        records = read_all(store)
        corrupt = {letter.id for letter in store.letters.find(DeadLetterQuery(reason="corrupt"))}
        store.letters.find(DeadLetterQuery())
    except (SpoolError, sqlite3.Error, UnicodeDecodeError):
        assert named
        return "partly unreadable, and named"
    finally:
        store.close()
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


async def test_a_damaged_record_is_a_dead_letter_and_the_rest_is_delivered(tmp_path: Path) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    nowhere = process.settings(tmp_path, "http://127.0.0.1:9")
    async with process.daemon(nowhere) as daemon:
        events = [process.event("mira-okafor", n, amount=f"sum-{n}") for n in range(10)]
        await process.upload(f"{daemon.http}/2/httpapi", events)
    file = tmp_path / "data" / "e2e.db"
    content = file.read_bytes()
    assert content.count(b"sum-3") == 1
    file.write_bytes(content.replace(b"sum-3", b"sum-4"))
    code, out, _ = await process.run("spool", "verify", "-c", str(nowhere), "--json")
    assert (code, json.loads(out)) == (
        1,
        {"e2e": [{"table": "records", "key": "4", "problem": "its checksum does not match"}]},
    )
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        status = await daemon.settled()
    assert (status["delivered"], status["dead_by_reason"]) == (9, {"corrupt": 1})
    code, out, _ = await process.run("dead-letters", "replay", "-c", str(nowhere), "--json")
    assert (code, json.loads(out)) == (0, {"still dead": 1})
