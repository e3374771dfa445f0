"""Lines from pipes and files."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from transports import Batch, Receipt, Ticket
from transports.amplitude import BadEvent, Head, read_head
from transports.errors import Damaged, Refused
from transports.stdin import TICKETS, LineSource, Progress

GOOD = b'{"event_type": "Bought", "user_id": "user-1"}'


class Intake:
    """Acknowledges batches, but refuses those whose turn is in ``refuse``."""

    def __init__(self, refuse: dict[int, str] | None = None) -> None:
        self.batches: list[Batch] = []
        self.stored: list[bytes] = []
        self.marks: dict[str, str] = {}
        self._refuse = refuse or {}

    def takes(self, api_key: str) -> bool:
        return True

    async def send(self, batch: Batch) -> Ticket:
        ticket = Ticket()
        reason = self._refuse.get(len(self.batches))
        self.batches.append(batch)
        if reason:
            ticket.refuse(Refused(reason))
        else:
            self.stored.extend(batch.raws)
            self.marks.update(batch.marks)
            ticket.acknowledge(Receipt(len(batch.raws), 0, 0, 0))
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


async def test_lines_that_are_too_long_and_begin_alike_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join(b"x" * 9_000 + end for end in (b"1", b"2", b"1")))
    intake = Intake()
    await LineSource([str(path)], max_line_bytes=8_000).run(intake)
    heads = [head for batch in intake.batches for head in batch.heads or ()]
    one, other, again = [head.digest for head in heads if isinstance(head, BadEvent)]
    assert one == again != other
    assert len({raw for batch in intake.batches for raw in batch.raws}) == 1


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
        (tmp_path / name).write_bytes(b"".join(b'"%s%d"\n' % (name.encode(), n) for n in range(5)))
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
    assert intake.stored == [b'"%s%d"' % (name, n) for name in (b"a", b"b") for n in range(5)]
    assert sum(receipt.accepted for receipt in heard) == 10


async def test_a_refused_batch_is_sent_again_until_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"1\n2\n3\n")
    intake = Intake(refuse={0: "spool_full", 1: "spool_full", 2: "spool_full"})
    await LineSource([str(path)], batch_lines=1).run(intake)
    assert intake.stored == [b"1", b"2", b"3"]


async def test_a_source_of_an_engine_that_drains_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(GOOD)
    with pytest.raises(Refused, match="draining"):
        await LineSource([str(path)]).run(Intake(refuse={0: "draining"}))


async def test_what_was_read_before_an_unreadable_file_is_stored(tmp_path: Path) -> None:
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
    lines = [b"%d" % n for n in range(300)]
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
        await LineSource([str(tmp_path)], batch_lines=3, marks=first.marks).run(second)
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
    (tmp_path / "a.json").write_bytes(b"\n".join(b"%d" % n for n in range(200)))
    intake = Intake(refuse={20: "spool_full"})
    seen: list[int] = []
    take = intake.send

    async def send(batch: Batch) -> Ticket:
        ticket = await take(batch)
        marked = [msgspec.json.decode(mark)["line"] for mark in batch.marks.values()]
        seen.extend(marked)
        stored = {int(raw) for raw in intake.stored}
        assert all(set(range(line)) <= stored for line in marked)
        return ticket

    intake.send = send  # type: ignore[method-assign]
    await LineSource([str(tmp_path)], batch_lines=2).run(intake)
    assert seen
    assert sorted(map(int, intake.stored)) == list(range(200))


async def test_a_damaged_file_is_reported_and_the_next_one_read(tmp_path: Path) -> None:
    whole = gzip.compress(b"1\n2\n")
    (tmp_path / "a.json.gz").write_bytes(whole[:-9])
    (tmp_path / "b.json.gz").write_bytes(whole)
    heard: list[str] = []

    class Heard(Progress):
        def damaged(self, error: Damaged) -> None:
            heard.append(Path(error.path).name)

    intake = Intake()
    await LineSource([str(tmp_path)], progress=Heard()).run(intake)
    assert heard == ["a.json.gz"]
    assert intake.stored[-2:] == [b"1", b"2"]


async def test_only_events_of_the_time_that_is_asked_for_are_handed_over(tmp_path: Path) -> None:
    times = ["2024-05-14 08:59:59.999", "2024-05-14 09:00:00", "2024-05-14T11:59:59+02:00"]
    lines = [json.dumps({"event_type": "a", "event_time": time}) for time in times]
    lines += ['{"event_type": "a", "time": 1715680800000}', '{"event_type": "a"}', "not json"]
    (tmp_path / "a.json").write_text("\n".join(lines), encoding="utf-8")
    passed: list[int] = []

    class Heard(Progress):
        def passed_over(self, count: int) -> None:
            passed.append(count)

    intake = Intake()
    since, until = 1715677200000, 1715680800000
    source = LineSource([str(tmp_path)], since_ms=since, until_ms=until, progress=Heard())
    await source.run(intake)
    assert intake.stored == [line.encode() for line in (*lines[1:3], *lines[4:])]
    assert sum(passed) == 2


async def test_what_was_passed_over_is_read_when_another_time_is_asked_for(tmp_path: Path) -> None:
    old = [b'{"event_type": "a", "time": %d}' % n for n in range(40)]
    new = [b'{"event_type": "a", "time": %d}' % (10**12 + n) for n in range(400)]
    (tmp_path / "1.json").write_bytes(b"\n".join(old))
    (tmp_path / "2.json").write_bytes(b"\n".join(new))
    first = DyingIntake(30)
    with suppress(Stopped):
        await LineSource([str(tmp_path)], batch_lines=3, since_ms=10**12).run(first)
    assert any("1.json" in name for name in first.marks)
    second = Intake()
    await LineSource([str(tmp_path)], batch_lines=3, marks=first.marks).run(second)
    assert second.stored == old + new


async def test_a_file_whose_name_is_no_text_is_read_as_any_other(tmp_path: Path) -> None:
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
