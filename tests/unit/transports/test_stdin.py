"""Lines from pipes and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from transports import Batch, Receipt, Ticket
from transports.amplitude import BadEvent, Head
from transports.errors import Refused
from transports.stdin import KEPT_BYTES, Lines, LineSource

GOOD = b'{"event_type": "Bought", "user_id": "user-1"}'


class Intake:
    """Acknowledges batches, but refuses those whose turn is in ``refuse``."""

    def __init__(self, refuse: dict[int, str] | None = None) -> None:
        self.batches: list[Batch] = []
        self.stored: list[bytes] = []
        self._refuse = refuse or {}

    async def send(self, batch: Batch) -> Ticket:
        ticket = Ticket()
        reason = self._refuse.get(len(self.batches))
        self.batches.append(batch)
        if reason:
            ticket.refuse(Refused(reason))
        else:
            self.stored.extend(batch.raws)
            ticket.acknowledge(Receipt(len(batch.raws), 0, 0, 0))
        return ticket


def cut(lines: Lines, *chunks: bytes) -> list[tuple[int, bytes, bool]]:
    found = [one for chunk in chunks for one in lines.cut(chunk)]
    return [*found, *lines.end()]


# --- lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_where_chunks_end_does_not_matter(size: int) -> None:
    text = b"\xef\xbb\xbfone\r\n\n  \ntwo\nthree"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert cut(Lines(100), *chunks) == [(1, b"one", True), (4, b"two", True), (5, b"three", True)]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert cut(Lines(3), b"abc\nabcd\nabc") == [
        (1, b"abc", True),
        (2, b"abcd", False),
        (3, b"abc", True),
    ]


def test_only_the_beginning_of_a_gigantic_line_is_kept_and_the_next_is_whole() -> None:
    lines = Lines(10_000)
    found = cut(lines, *[b"x" * 1_000_000] * 20, b"\nnext\n")
    assert found == [(1, b"x" * KEPT_BYTES, False), (2, b"next", True)]


def test_a_gigantic_line_without_an_end_is_reported() -> None:
    assert cut(Lines(10_000), b"x" * 20_000) == [(1, b"x" * KEPT_BYTES, False)]


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
        (b'{"event_type": "a", "p": NaN}', "invalid_json"),
        (b"[" * 10_000 + b"]" * 10_000, "invalid_json"),
        (b"[]", "not_an_object"),
        (b'{"user_id": 5}', "invalid_field"),
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
    heads = [head for batch in intake.batches for head in batch.heads]
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
    await LineSource(
        [str(tmp_path / "a"), str(tmp_path / "b")],
        batch_lines=2,
        progress=lambda _, receipt: heard.append(receipt) if receipt else None,
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
