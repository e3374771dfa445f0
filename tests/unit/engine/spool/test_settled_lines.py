"""All settlings but deliveries are in the log, once they are durable and not before."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.settings import Log
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.spool.letter_ends import discard
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.rows import Append
from amplitude_intercom.engine.spool.settled_lines import MOST_LINES, about_raw
from support.spools import OneSync, kept, opened, part_of

RAW = b'{"event_type":"Purchase","user_id":"ann"}'
EVENT = kept("ann", RAW)
FAILED = Failure(DeadReason.USER_NOT_FOUND, 404, "not_found", "User Not Found", "r-1")


@pytest.fixture
def sync(tmp_path: Path) -> OneSync:
    return OneSync(opened(tmp_path / "s.db"))


def append(sync: OneSync, count: int = 1, dead: int = 0) -> None:
    letter = DeadRow("invalid_id", "too short", RAW, None, "http /webhook", 7)
    sync.store.begin()
    sync.store.append([Append([part_of([EVENT] * count, [letter] * dead)])], 1)
    sync.store.commit()


def load(sync: OneSync) -> list[Record]:
    """Load all there is in somebody's transaction."""
    return sync.queue.load(Wanted(999, 1 << 20, per_user=999, now_ms=1)).records


def test_a_dead_letter_has_a_warning_with_all_that_finds_it(sync: OneSync) -> None:
    append(sync)
    sync.store.begin()
    sync.settling.bury(load(sync)[0], FAILED, 1)
    with capture_logs() as lines:
        sync.store.commit()
    assert lines == [
        {
            "event": "dead letter",
            "log_level": "warning",
            "sync": "s",
            "record": SLOTS,
            "user": "ann",
            "event_type": "Purchase",
            "reason": "user_not_found",
            "status": 404,
            "code": "not_found",
            "message": "User Not Found",
            "request_id": "r-1",
            "means": DeadReason.USER_NOT_FOUND.means,
        }
    ]


def test_a_rolled_back_settlement_is_not_announced(sync: OneSync) -> None:
    append(sync)
    with capture_logs() as lines:
        sync.store.begin()
        sync.settling.bury(load(sync)[0], FAILED, 1)
        sync.store.rollback()
        sync.store.begin()
        sync.store.commit()
    assert lines == []


def test_a_parked_user_an_expired_event_and_one_dead_at_intake_have_their_lines(
    sync: OneSync,
) -> None:
    append(sync)
    with capture_logs() as lines:
        sync.store.begin()
        sync.settling.park(load(sync)[0], (), FAILED, 99, 1)
        sync.store.commit()
        sync.store.begin()
        sync.settling.expire("ann", FAILED, 1, 1)
        sync.store.commit()
        append(sync, count=0, dead=1)
    found = [(line["log_level"], line["event"], line["user"], line["reason"]) for line in lines]
    assert found == [
        ("info", "user parked", "ann", "user_not_found"),
        ("warning", "dead letter", "ann", "user_not_found"),
        ("warning", "dead letter", "ann", "invalid_id"),
    ]
    assert (lines[-1]["origin"], lines[-1]["line"]) == ("http /webhook", 7)


def test_a_damaged_record_has_its_line(sync: OneSync) -> None:
    append(sync)
    sync.store.db.execute("UPDATE inbox SET events = ?", (RAW.replace(b"ann", b"bob"),))
    with capture_logs() as lines:
        sync.store.begin()
        assert load(sync) == []
        sync.store.commit()
    assert [(line["reason"], line["user"], line["record"]) for line in lines] == [
        ("corrupt", "ann", SLOTS)
    ]


def test_a_crowd_in_one_transaction_costs_a_bounded_number_of_lines(sync: OneSync) -> None:
    with capture_logs() as lines:
        append(sync, count=0, dead=5 * MOST_LINES)
    assert len(lines) == MOST_LINES + 1
    assert lines[-1]["count"] == 4 * MOST_LINES


def test_a_discarded_letter_has_its_line_at_debug(sync: OneSync) -> None:
    append(sync)
    sync.store.begin()
    sync.settling.bury(load(sync)[0], FAILED, 1)
    sync.store.commit()
    with debugging(), capture_logs() as lines:
        sync.store.begin()
        letters = sync.store.letters.find(sync.taker, DeadLetterQuery())
        assert discard(sync.store, sync.taker, letters) == 1
        assert lines == [], "not before it is durable"
        sync.store.commit()
    assert [about(line) for line in lines] == [("dropped", "ann", "discarded")]


def about(line: MutableMapping[str, Any]) -> tuple[str, str, str]:
    return line["event"], line["user"], line["reason"]


@contextmanager
def debugging() -> Iterator[None]:
    logs.configure(Log(level="debug"))
    try:
        yield
    finally:
        logs.configure(Log())


def test_an_event_that_was_accepted_before_has_its_line_at_debug(sync: OneSync) -> None:
    sync.append(*[kept("ann", RAW, key=b"key")] * 2)
    with debugging(), capture_logs() as lines:
        sync.load()
    assert [about(line) for line in lines] == [("dropped", "ann", "duplicate")]


def test_a_bad_line_that_is_known_already_has_its_line_at_debug(sync: OneSync) -> None:
    letter = DeadRow("invalid_id", "too short", RAW, b"k" * 16, "f", 7, "ann")
    with debugging(), capture_logs() as lines:
        sync.store.begin()
        sync.store.append([Append([part_of(dead=[letter, letter])])], 1)
        sync.store.commit()
    assert [about(line) for line in lines] == [
        ("dead letter", "ann", "invalid_id"),
        ("dropped", "ann", "duplicate"),
    ]


@pytest.mark.parametrize(
    ("raw", "about"),
    [
        (b'{"event_type": 7, "user_id": "ann"}', {"user": "ann", "event_type": "7"}),
        (b'{"event_type": "A", "user_id": [], "device_id": 5}', {"user": "5", "event_type": "A"}),
        (b'{"event_type": "A", "user_id": "ann", "time": {}}', {"user": "ann", "event_type": "A"}),
        (b'{"event_type": "A", "user_id": "a', {}),
        (b"[]", {}),
    ],
)
def test_one_bad_field_hides_no_other(raw: bytes, about: dict[str, str]) -> None:
    assert about_raw(raw) == about
