"""The speed of intake: from a file of unselected events, from one of selected events, by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.commands.forward import forward
from amplitude_intercom.engine.settings import Settings
from benchmarks import daemons, events, load, servers
from benchmarks.report import Result, in_turns, result_of_rounds

CHUNK_BYTES = 1 << 20
BATCH = 500


class _Needed(msgspec.Struct, gc=False):
    """The fields that a filter needs."""

    event_type: str
    user_id: str


class _NeededToKeep(msgspec.Struct, gc=False):
    """The fields that a kept event needs."""

    event_type: str
    user_id: str
    device_id: str
    insert_id: str


def _lines(path: Path) -> Iterator[list[bytes]]:
    rest = b""
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield lines


def _bare_filter(path: Path) -> int:
    """Split lines, decode two fields, look the event type up; return the number of matches."""
    decode = msgspec.json.Decoder(_Needed).decode
    selected = {events.SELECTED: True}
    kept = 0
    for lines in _lines(path):
        for line in lines:
            if selected.get(decode(line).event_type):
                kept += 1
    return kept


def _bare_intake(path: Path, spool: Path) -> int:
    """Insert a row with a checksum and an insert id for each event, ``BATCH`` a commit."""
    decode = msgspec.json.Decoder(_NeededToKeep).decode
    db = sqlite3.connect(spool, isolation_level=None)
    db.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
        "CREATE TABLE seen (key BLOB NOT NULL UNIQUE, at_ms INTEGER NOT NULL) STRICT;"
        "CREATE TABLE records (id INTEGER PRIMARY KEY, kind INTEGER, user_key TEXT,"
        " accepted_at_ms INTEGER, claim_id INTEGER, crc INTEGER, raw BLOB) STRICT;"
    )
    number = 0
    for lines in _lines(path):
        for start in range(0, len(lines), BATCH):
            rows, keys = [], []
            for raw in lines[start : start + BATCH]:
                head = decode(raw)
                number += 1
                key = f"{head.insert_id}\x00{head.device_id}".encode()
                keys.append((hashlib.blake2b(key, digest_size=16).digest(), 1))
                checksum = zlib.crc32(raw, zlib.crc32(head.user_id.encode()))
                rows.append((number, 1, head.user_id, 1, number, checksum, raw))
            db.execute("BEGIN")
            db.executemany("INSERT OR IGNORE INTO seen (key, at_ms) VALUES (?, ?)", keys)
            db.executemany(
                "INSERT INTO records (id, kind, user_key, accepted_at_ms, claim_id, crc, raw)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            db.execute("COMMIT")
    db.close()
    return number


def _forward(settings: Settings, path: Path, count: int) -> None:
    """Run the command ``forward`` in this process on a file of ``count`` events."""
    out = io.StringIO()
    logs.configure(settings.log)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        asyncio.run(forward(settings, [str(path)], as_json=True, max_wait_s=0))
    counts = msgspec.json.decode(out.getvalue())
    assert counts["received"] == count
    assert counts["pending"] + sum(counts["dropped"].values()) == count


def _per_s(count: int, started: float) -> float:
    return count / (time.perf_counter() - started)


def filtering(seed: int, *, smoke: bool) -> list[Result]:
    """Measure ``forward`` of a file without a selected event, beside a bare loop."""
    count, rounds = (40_000, 3) if smoke else (600_000, 4)
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "events.jsonl"
        events.write_lines(path, events.events(count, seed, events.UNSELECTED))
        settings = events.settings(folder)

        def measured() -> float:
            started = time.perf_counter()
            _forward(settings, path, count)
            return _per_s(count, started)

        def reference() -> float:
            started = time.perf_counter()
            assert _bare_filter(path) == 0
            return _per_s(count, started)

        return [result_of_rounds("filter", in_turns(rounds, measured, reference), "events/s")]


def from_file(seed: int, *, smoke: bool) -> list[Result]:
    """Measure ``forward`` of a file of selected events until durable, beside bare SQLite."""
    count, rounds = (20_000, 3) if smoke else (200_000, 5)
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "events.jsonl"
        events.write_lines(path, events.events(count, seed))
        number = 0

        def fresh() -> Path:
            nonlocal number
            number += 1
            (folder / str(number)).mkdir()
            return folder / str(number)

        def measured() -> float:
            # No delivery succeeds, because no server listens; a disabled sync would drop events.
            table = events.table(fresh())
            settings = events.checked(table | {"forward": {"max_backlog": count + 1}})
            started = time.perf_counter()
            _forward(settings, path, count)
            return _per_s(count, started)

        def reference() -> float:
            spool = fresh() / "bare.db"
            started = time.perf_counter()
            assert _bare_intake(path, spool) == count
            return _per_s(count, started)

        return [result_of_rounds("intake-file", in_turns(rounds, measured, reference), "events/s")]


def over_http(seed: int, *, smoke: bool) -> list[Result]:
    """Measure requests of 100 and of 10 events over 32 connections, answered when durable.

    The reference is the server ``durable-intake``.
    """
    return [_over_http(f"intake-http-{size}", size, seed, smoke=smoke) for size in (100, 10)]


def _over_http(name: str, size: int, seed: int, *, smoke: bool) -> Result:
    seconds, rounds = (0.5, 2) if smoke else (2.5, 4)
    bodies = [
        b'{"api_key":"%s","events":[%s]}' % (events.API_KEY.encode(), b",".join(part))
        for part in _parts(_unidentified(20_000, seed), size)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.running("bare-intake") as bare,
        servers.running("durable-intake") as durable,
        daemons.running(events.table(Path(folder))) as daemon,
    ):

        def per_s(address: str) -> float:
            return load.requests_per_s(address, "/batch", bodies, seconds) * size

        pairs = in_turns(rounds, lambda: per_s(daemon.http), lambda: per_s(durable))
        note = f"one that stores nothing: {per_s(bare):,.0f}"
        return result_of_rounds(name, pairs, "events/s", note)


def with_a_relay(seed: int, *, smoke: bool) -> list[Result]:
    """Measure requests of 100 events with a relay, beside the same daemon without one.

    The relay's Amplitude is down, so that only its intake is measured.
    """
    seconds, rounds = (0.5, 2) if smoke else (2.5, 7)
    bodies = [
        b'{"api_key":"%s","events":[%s]}' % (events.API_KEY.encode(), b",".join(part))
        for part in _parts(_unidentified(20_000, seed), 100)
    ]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        relay = {"relay": [{"base_url": "http://127.0.0.1:9"}]}
        with (
            daemons.running(events.table(Path(one)) | relay) as relaying,
            daemons.running(events.table(Path(other))) as plain,
        ):

            def per_s(address: str) -> float:
                return load.requests_per_s(address, "/batch", bodies, seconds) * 100

            pairs = in_turns(rounds, lambda: per_s(relaying.http), lambda: per_s(plain.http))
            return [result_of_rounds("intake-relay", pairs, "events/s")]


def _unidentified(count: int, seed: int) -> list[bytes]:
    """Return events without insert ids, so that none is a duplicate when it is sent again."""
    return [raw.replace(b'"insert_id"', b'"xnsert_id"') for raw in events.events(count, seed)]


def _parts(raws: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(raws), size):
        yield raws[start : start + size]
