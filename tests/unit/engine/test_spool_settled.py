"""All settlings but deliveries are in the log, once they are durable and not before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.settings import Log
from amplitude_intercom.engine.spool.rows import Append, DeadLetterQuery, DeadRow, Row
from amplitude_intercom.engine.spool.schema import connect
from amplitude_intercom.engine.spool.settled import MOST_LINES, about_raw
from amplitude_intercom.engine.spool.store import Store

RAW = b'{"event_type":"Purchase","user_id":"ann"}'
ROW = Row(Kind.EVENT, "ann", RAW, None)
FAILED = Failure(DeadReason.USER_NOT_FOUND, 404, "not_found", "User Not Found", "r-1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(connect(tmp_path / "s.db"), max_bytes=1 << 30, window_ms=1_000)


def append(store: Store, count: int = 1, dead: int = 0) -> None:
    store.begin()
    letter = DeadRow("invalid_id", "too short", RAW, None, "http /webhook", 7)
    store.append([Append(count + dead, [ROW] * count, [letter] * dead, Counter())], 1)
    store.commit()


def load(store: Store) -> Any:
    return store.load(
        0, limit=999, limit_bytes=1 << 20, per_user=999, crowded=(), halted=(), now_ms=1
    ).records


def test_a_dead_letter_has_a_warning_with_all_that_finds_it(store: Store) -> None:
    append(store)
    store.begin()
    store.bury(load(store)[0], FAILED, 1)
    with capture_logs() as lines:
        store.commit()
    assert lines == [
        {
            "event": "dead letter",
            "log_level": "warning",
            "record": 1,
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


def test_what_is_rolled_back_is_not_spoken_of(store: Store) -> None:
    append(store)
    with capture_logs() as lines:
        store.begin()
        store.bury(load(store)[0], FAILED, 1)
        store.rollback()
        store.begin()
        store.commit()
    assert lines == []


def test_a_parked_user_an_expired_event_and_one_dead_at_the_door_have_their_lines(
    store: Store,
) -> None:
    append(store)
    with capture_logs() as lines:
        store.begin()
        store.park(load(store)[0], FAILED, 99, 1)
        store.commit()
        store.begin()
        store.expire("ann", FAILED, 1, 1)
        store.commit()
        append(store, count=0, dead=1)
    found = [(line["log_level"], line["event"], line["user"], line["reason"]) for line in lines]
    assert found == [
        ("info", "user parked", "ann", "user_not_found"),
        ("warning", "dead letter", "ann", "user_not_found"),
        ("warning", "dead letter", "ann", "invalid_id"),
    ]
    assert (lines[-1]["origin"], lines[-1]["line"]) == ("http /webhook", 7)


def test_a_damaged_record_has_its_line(store: Store) -> None:
    append(store)
    store._db.execute("UPDATE records SET raw = ?", (RAW.replace(b"ann", b"bob"),))
    with capture_logs() as lines:
        store.begin()
        assert load(store) == []
        store.commit()
    assert [(line["reason"], line["user"], line["record"]) for line in lines] == [
        ("corrupt", "ann", 1)
    ]


def test_a_crowd_in_one_transaction_costs_a_bounded_number_of_lines(store: Store) -> None:
    with capture_logs() as lines:
        append(store, count=0, dead=5 * MOST_LINES)
    assert len(lines) == MOST_LINES + 1
    assert lines[-1]["count"] == 4 * MOST_LINES


def test_a_discarded_letter_and_a_known_bad_line_have_their_lines_at_debug(store: Store) -> None:
    logs.configure(Log(level="debug"))
    try:
        letter = DeadRow("invalid_id", "too short", RAW, b"k" * 16, "f", 7, "ann")
        with capture_logs() as lines:
            for _ in range(2):
                store.begin()
                store.append([Append(1, [], [letter], Counter())], 1)
                store.commit()
            store.begin()
            [kept] = store.letters.find(DeadLetterQuery(user="ann"))
            assert store.discard(kept)
            assert lines[1:] == lines[1:2]  # not before it is durable
            store.commit()
    finally:
        logs.configure(Log())
    found = [(line["event"], line["user"], line["reason"]) for line in lines]
    assert found == [
        ("dead letter", "ann", "invalid_id"),
        ("dropped", "ann", "duplicate"),
        ("dropped", "ann", "discarded"),
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
