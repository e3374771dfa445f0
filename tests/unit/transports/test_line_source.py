"""Lines from pipes and files."""

from __future__ import annotations

import asyncio
import bz2
import gc
import gzip
import io
import json
import lzma
import os
import socket
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.contract import Batch, Receipt, Ticket
from amplitude_intercom.transports.errors import BadFile, Refused
from amplitude_intercom.transports.handover import TICKETS
from amplitude_intercom.transports.line_source import LineSource
from amplitude_intercom.transports.progress import Progress
from amplitude_intercom.transports.reasons import RefusalReason

GOOD = b'{"event_type": "Bought", "user_id": "user-1"}'


def numbered(n: int, name: str = "a") -> bytes:
    return b'{"event_type": "%s", "n": %d}' % (name.encode(), n)


class Intake:
    """Acknowledges batches, but refuses those whose turn is in ``refuse``."""

    def __init__(self, refuse: dict[int, str] | None = None) -> None:
        self.batches: list[Batch] = []
        self.stored: list[bytes] = []
        self.checkpoints: dict[str, str] = {}
        self._refuse = refuse or {}

    def takes(self, api_key: str) -> bool:
        return True

    async def send(self, batch: Batch) -> Ticket:
        ticket = Ticket()
        reason = self._refuse.get(len(self.batches))
        self.batches.append(batch)
        if reason:
            ticket.refuse(Refused(RefusalReason(reason)))
        else:
            self.stored.extend(batch.raws)
            self.checkpoints.update(batch.checkpoints)
            ticket.acknowledge(Receipt(len(batch.raws), 0, 0))
        return ticket


# --- the source -------------------------------------------------------------------------


async def test_good_lines_go_along_with_their_bytes_numbers_and_origin(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(GOOD + b"\n\n" + GOOD + b"\n")
    intake = Intake()
    await LineSource([str(path)], sync="a").run(intake)
    batch = intake.batches[0]
    assert batch.raws == [GOOD, GOOD]
    assert (batch.lines, batch.origin, batch.sync) == ([1, 3], "events.ndjson", "a")
    assert batch.derive_ids


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event_type": "cut', "invalid_json"),
        (b'{"event_type": "a", "p": "\xff\xfe"}', "invalid_json"),
        (b'{"event_type": "a", "p": nan}', "invalid_json"),
        (b"[" * 10_000 + b"]" * 10_000, "not_an_object"),
        (b"[]", "not_an_object"),
        (b'{"user_id": 5.5}', "invalid_field"),
        (b'{"event_type": "a", "user_properties": "{}"}', "invalid_field"),
        (b"x" * 2_000_000, "too_large"),
    ],
)
async def test_a_bad_line_is_reported_with_its_number_and_stops_nothing(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join([GOOD, line, GOOD]))
    intake = Intake()
    await LineSource([str(path)]).run(intake)
    heads = [
        head
        for batch in intake.batches
        for head in batch.heads or [read_head(raw)[0] for raw in batch.raws]
    ]
    numbers = [number for batch in intake.batches for number in batch.lines or ()]
    assert numbers == [1, 2, 3]
    assert isinstance(heads[0], Head)
    assert isinstance(heads[1], BadEvent)
    assert heads[1].reason == reason
    assert isinstance(heads[2], Head)


async def test_batches_have_the_size_that_is_set_and_several_files_keep_their_order(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"".join(numbered(n, name) + b"\n" for n in range(5)))
    intake = Intake()
    heard: list[Receipt] = []

    class Heard(Progress):
        def stored(self, receipt: Receipt) -> None:
            heard.append(receipt)

    await LineSource(
        [str(tmp_path / "a"), str(tmp_path / "b")],
        batch_lines=2,
        progress=Heard(),
    ).run(intake)
    assert [len(batch.raws) for batch in intake.batches] == [2, 2, 1, 2, 2, 1]
    assert intake.stored == [numbered(n, name) for name in "ab" for n in range(5)]
    assert sum(receipt.accepted for receipt in heard) == 10


async def test_a_refused_batch_is_sent_again_until_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"\n".join(map(numbered, (1, 2, 3))))
    intake = Intake(refuse={0: "spool_full", 1: "spool_full", 2: "spool_full"})
    await LineSource([str(path)], batch_lines=1).run(intake)
    assert intake.stored == list(map(numbered, (1, 2, 3)))


async def test_a_source_of_an_engine_that_drains_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(GOOD)
    with pytest.raises(Refused, match="draining"):
        await LineSource([str(path)]).run(Intake(refuse={0: "draining"}))


async def test_events_before_an_unreadable_file_are_stored(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(GOOD)
    intake = Intake()
    with pytest.raises(FileNotFoundError, match="absent"):
        await LineSource([str(tmp_path / "a"), str(tmp_path / "absent")]).run(intake)
    assert intake.stored == [GOOD]


async def test_an_empty_file_brings_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.touch()
    intake = Intake()
    await LineSource([str(path)]).run(intake)
    assert intake.batches == []


# --- going on after an interruption -------------------------------------------------------


class Stopped(Exception):
    """The process ends here."""


class DyingIntake(Intake):
    """Takes so many batches, then nothing more is heard of it."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._left = batches

    async def send(self, batch: Batch) -> Ticket:
        if not self._left:
            raise Stopped
        self._left -= 1
        return await super().send(batch)


@pytest.mark.parametrize("pack", ["plain", "gzip", "zip"])
async def test_reading_goes_on_where_it_stopped_whenever_that_was(
    tmp_path: Path, pack: str
) -> None:
    lines = [numbered(n) for n in range(300)]
    _write_packed(tmp_path, lines, pack)
    everything = Intake()
    await LineSource([str(tmp_path)], batch_lines=3).run(everything)
    assert everything.stored == lines
    total = len(everything.batches)
    for stop in range(0, total, 7):
        first = DyingIntake(stop)
        with suppress(Stopped):
            await LineSource([str(tmp_path)], batch_lines=3).run(first)
        second = Intake()
        await LineSource([str(tmp_path)], batch_lines=3, checkpoints=first.checkpoints).run(second)
        reread = len(first.stored) + len(second.stored) - len(lines)
        assert second.stored == lines[len(lines) - len(second.stored) :]
        assert 0 <= reread <= 3 * (TICKETS + 1)
        numbers = [n for batch in second.batches for n in batch.lines or ()]
        assert (
            numbers
            == [n for batch in everything.batches for n in batch.lines or ()][-len(numbers) :]
        )


def _numbers(intake: Intake) -> list[int]:
    return [number for batch in intake.batches for number in batch.lines or ()]


def _write_packed(folder: Path, lines: list[bytes], pack: str) -> None:
    """Three files of lines, or a ZIP of three."""
    thirds = [b"\n".join(lines[at : at + 100]) for at in (0, 100, 200)]
    if pack == "zip":
        with zipfile.ZipFile(folder / "export.zip", "w") as archive:
            for n, third in enumerate(thirds):
                archive.writestr(f"hour_{n + 9}.json.gz", gzip.compress(third))
    else:
        for n, third in enumerate(thirds):
            packed = gzip.compress(third) if pack == "gzip" else third
            (folder / f"hour_{n + 9}.json").write_bytes(packed)


async def test_a_refused_batch_is_not_passed_by_the_mark_of_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\n".join(map(numbered, range(200))))
    intake = Intake(refuse={20: "spool_full"})
    seen: list[int] = []
    take = intake.send

    async def send(batch: Batch) -> Ticket:
        ticket = await take(batch)
        marked = [msgspec.json.decode(mark)["line"] for mark in batch.checkpoints.values()]
        seen.extend(marked)
        stored = {json.loads(raw)["n"] for raw in intake.stored}
        assert all(set(range(line)) <= stored for line in marked)
        return ticket

    intake.send = send  # type: ignore[method-assign]
    await LineSource([str(tmp_path)], batch_lines=2).run(intake)
    assert seen
    assert sorted(json.loads(raw)["n"] for raw in intake.stored) == list(range(200))


class Heard(Progress):
    """Notes what is said of the files."""

    def __init__(self) -> None:
        self.bad: list[str] = []
        self.missing: list[str] = []
        self.passed = 0

    def bad_file(self, error: BadFile) -> None:
        self.bad.append(f"{Path(error.path).name}{str(error).removeprefix(error.path)}")

    def unreadable(self, error: OSError) -> None:
        self.missing.append(Path(str(error.filename)).name)

    def passed_over(self, count: int) -> None:
        self.passed += count


async def test_a_damaged_file_is_reported_and_the_next_one_read(tmp_path: Path) -> None:
    whole = gzip.compress(b"{}\n{}\n")
    (tmp_path / "a.json.gz").write_bytes(whole[:-9])
    (tmp_path / "b.json.gz").write_bytes(whole)
    intake, heard = Intake(), Heard()
    await LineSource([str(tmp_path)], progress=heard).run(intake)
    assert heard.bad == ["a.json.gz: damaged: it ends too early"]
    assert intake.stored[-2:] == [b"{}", b"{}"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"\n".join(map(numbered, range(50))))[:-9], "damaged: it ends too early"),
        (b"[" + b",".join(map(numbered, range(50))), "damaged: its JSON ends too early"),
        (b"PAR1" + bytes(99), "not JSON: a Parquet file"),
    ],
)
async def test_the_fault_of_a_file_is_named_in_every_run_until_all_is_read(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """However far a run comes, the next one that goes on from there says it again."""
    (tmp_path / "1.json").write_bytes(content)
    (tmp_path / "2.json").write_bytes(b"\n".join(map(numbered, range(200))))
    for stop in (1, 5, 30, 40, 60):
        first, second, heard = DyingIntake(stop), Intake(), Heard()
        with suppress(Stopped):
            await LineSource([str(tmp_path)], batch_lines=3, progress=Heard()).run(first)
        await LineSource(
            [str(tmp_path)], batch_lines=3, checkpoints=first.checkpoints, progress=heard
        ).run(second)
        assert heard.bad == [f"1.json: {said}"]
        stored = {*first.stored, *second.stored}
        assert stored >= set(map(numbered, range(50 if b"event_type" in content else 0)))
        assert stored >= set(map(numbered, range(50, 200)))


async def test_a_member_s_damage_is_said_again_where_reading_goes_on_behind_it(
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("1.json.gz", gzip.compress(numbered(0) + b"\n")[:-9])
        archive.writestr("2.csv", b"a,b\n1,2\n")
        archive.writestr("3.json", b"\n".join(map(numbered, range(200))))
    first, second, heard = DyingIntake(50), Intake(), Heard()
    with suppress(Stopped):
        await LineSource([str(tmp_path)], batch_lines=2, progress=Heard()).run(first)
    assert any("3.json" in mark for mark in first.checkpoints.values())
    await LineSource(
        [str(tmp_path)], batch_lines=2, checkpoints=first.checkpoints, progress=heard
    ).run(second)
    assert heard.bad == [
        "export.zip:1.json.gz: damaged: it ends too early",
        "export.zip:2.csv: not JSON: CSV, its first line is 'a,b'",
    ]
    assert second.stored == list(map(numbered, range(200)))[-len(second.stored) :]


@pytest.mark.parametrize("shape", ["pretty", "array"])
async def test_a_file_without_an_entry_in_the_middle_is_read_again_from_its_beginning(
    tmp_path: Path, shape: str
) -> None:
    events = [json.loads(numbered(n)) for n in range(100)]
    text = json.dumps(events) if shape == "array" else "".join(map(json.dumps, events))
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    first, second = DyingIntake(30), Intake()
    with suppress(Stopped):
        await LineSource([str(tmp_path)], batch_lines=2).run(first)
    await LineSource([str(tmp_path)], batch_lines=2, checkpoints=first.checkpoints).run(second)
    assert list(map(json.loads, second.stored)) == events
    assert _numbers(second) == list(range(1, 101))


async def test_a_file_that_cannot_be_read_is_told_of_and_the_next_one_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "a.json")
    (tmp_path / "c.json").write_bytes(GOOD)
    intake, heard = Intake(), Heard()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "b.json"))
        paths = [str(tmp_path / "absent"), str(tmp_path), str(tmp_path / "b.json")]
        await LineSource(paths, progress=heard).run(intake)
    assert sorted(heard.missing) == ["a.json", "absent", "b.json", "b.json"]
    assert intake.stored == [GOOD]


async def test_nothing_of_a_file_without_json_is_handed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"user_id,event_type\n" + b"u-00001,A\n" * 50_000)
    (tmp_path / "b.json").write_bytes(GOOD)
    intake, heard = Intake(), Heard()
    await LineSource([str(tmp_path)], progress=heard).run(intake)
    assert intake.stored == [GOOD]
    assert heard.bad == ["a.json: not JSON: CSV, its first line is 'user_id,event_type'"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
async def test_a_pipe_is_read_in_every_packing(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.json", pack(b"\n".join(map(numbered, range(9)))))
    for content in (pack(b"\n".join(map(numbered, range(9)))), buffer.getvalue()):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        intake = Intake()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(pipe.write_bytes, content))
            await LineSource([str(pipe)]).run(intake)
        assert intake.stored == list(map(numbered, range(9)))
        pipe.unlink()


async def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(numbered(0) + b"\n")

    class Growing(Intake):
        async def send(self, batch: Batch) -> Ticket:
            if len(self.stored) < 5:
                with path.open("ab") as file:
                    file.write(numbered(len(self.stored) + 1) + b"\n")
            return await super().send(batch)

    intake = Growing()
    await LineSource([str(path)]).run(intake)
    again = Intake()
    await LineSource([str(path)], checkpoints=intake.checkpoints).run(again)
    assert again.stored == list(map(numbered, range(len(again.stored))))
    assert set(intake.stored) <= set(again.stored)


async def test_identify_objects_are_read_as_the_webhook_takes_them(tmp_path: Path) -> None:
    identify = b'{"user_id": "user-1", "user_properties": {"$set": {"plan": "pro"}}}'
    group = b'{"group_type": "org", "group_value": "acme", "group_properties": {"size": 3}}'
    neither = b'{"user_id": "user-1", "event_properties": {}}'
    path = tmp_path / "events.json"
    path.write_bytes(b"\n".join([GOOD, identify, group, neither]))
    intake = Intake()
    await LineSource([str(path)]).run(intake)
    read = [read_head(raw) for batch in intake.batches for raw in batch.raws]
    types = [head.event_type if isinstance(head, Head) else head for head, _ in read]
    assert types == ["Bought", "$identify", "$groupidentify", None]
    assert json.loads(read[1][1])["user_properties"] == {"$set": {"plan": "pro"}}
    assert json.loads(read[2][1])["groups"] == {"org": "acme"}
    assert read[3][1] == neither


@pytest.mark.parametrize("size", [9_000, 30_000])
async def test_an_event_that_is_too_large_is_bad_and_known_by_all_of_it(
    tmp_path: Path, size: int
) -> None:
    def large(end: bytes) -> bytes:
        return b'{"event_type": "a", "x": "' + b"x" * size + end + b'"}'

    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join([GOOD, large(b"1"), large(b"2"), large(b"1")]))
    intake = Intake()
    await LineSource([str(path)], max_line_bytes=20_000, max_event_bytes=8_000).run(intake)
    heads = [head for batch in intake.batches for head in batch.heads or ()]
    bad = [head for head in heads if isinstance(head, BadEvent)]
    assert [bad_event.reason for bad_event in bad] == ["too_large"] * 3
    assert {bad_event.message for bad_event in bad} == {"longer than 8000 bytes"}
    assert bad[0].digest == bad[2].digest != bad[1].digest
    assert [len(raw) for raw in intake.stored] == [len(GOOD), *[4_096] * 3]


async def test_only_events_of_the_time_that_is_asked_for_are_handed_over(tmp_path: Path) -> None:
    since, until = 1715677200000, 1715680800000  # 09:00 to 10:00
    times: list[tuple[str, object, bool]] = [
        ("event_time", "2024-05-14 08:59:59.999", False),
        ("event_time", "2024-05-14 09:00:00", True),
        ("event_time", "2024-05-14T11:59:59+02:00", True),
        ("time", 1715680800000, False),
        ("time", 1715680799, True),
        ("time", 1715680800, False),
        ("time", "1715680799", True),
        ("time", 1715680799999999, True),
        ("time", 1715680800000000, False),
        ("timestamp", "1715680800000", False),
        ("client_event_time", "2024-05-14 09:59:59.999000", True),
        ("client_event_time", 1715680800, False),
        ("client_event_time", "some day", True),
        ("time", "some day", True),
        ("time", None, True),
    ]
    lines = [json.dumps({"event_type": "a", name: time}).encode() for name, time, _ in times]
    (tmp_path / "a.json").write_bytes(b"\n".join([*lines, b"not json"]))
    intake, heard = Intake(), Heard()
    await LineSource([str(tmp_path)], since_ms=since, until_ms=until, progress=heard).run(intake)
    wanted = [line for line, (_, _, is_wanted) in zip(lines, times, strict=True) if is_wanted]
    assert intake.stored == [*wanted, b"not json"]
    assert heard.passed == len(lines) - len(wanted)


async def test_passed_over_events_are_read_when_another_time_is_asked_for(tmp_path: Path) -> None:
    old = [b'{"event_type": "a", "time": %d}' % n for n in range(40)]
    new = [b'{"event_type": "a", "time": %d}' % (10**12 + n) for n in range(400)]
    (tmp_path / "1.json").write_bytes(b"\n".join(old))
    (tmp_path / "2.json").write_bytes(b"\n".join(new))
    first = DyingIntake(30)
    with suppress(Stopped):
        await LineSource([str(tmp_path)], batch_lines=3, since_ms=10**12).run(first)
    assert any("1.json" in name for name in first.checkpoints)
    second = Intake()
    await LineSource([str(tmp_path)], batch_lines=3, checkpoints=first.checkpoints).run(second)
    assert second.stored == old + new


async def test_a_file_with_an_undecodable_name_is_read_as_any_other(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.json")
    Path(path).write_bytes(GOOD + b"\nnot json\n")
    intake = Intake()
    await LineSource([path]).run(intake)
    [batch] = intake.batches
    assert batch.origin == "\\xff\\xfe.json"
    batch.origin.encode()


async def test_an_input_that_nobody_can_wait_for_is_read_all_the_same() -> None:
    intake = Intake()
    async with asyncio.timeout(5):
        await LineSource(["/dev/null"]).run(intake)
    assert intake.batches == []


async def test_a_text_of_tiny_values_leaves_others_their_turns(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_bytes(b'[{"event_type":"a"},' + b"{}," * 100_000 + b"{}]")

    async def longest_share() -> float:
        """Read it; return how much of all the time the longest wait for a turn took."""
        gaps_s: list[float] = []

        async def take_turns() -> None:
            while True:
                started_s = time.process_time()
                await asyncio.sleep(0)
                gaps_s.append(time.process_time() - started_s)

        turns = asyncio.create_task(take_turns())
        await LineSource([str(path)]).run(Intake())
        turns.cancel()
        return max(gaps_s) / sum(gaps_s)

    gc.disable()  # what other tests have left is not to be collected within a turn of this one
    try:
        assert min([await longest_share() for _ in range(3)]) < 0.25
    finally:
        gc.enable()
