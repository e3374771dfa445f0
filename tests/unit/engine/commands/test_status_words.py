"""What ``status`` and ``users show`` say of calls that fail: what, whose, since when."""

from __future__ import annotations

import msgspec
import pytest

from amplitude_intercom.engine.commands import status, users
from amplitude_intercom.engine.delivery.judge import Trouble
from amplitude_intercom.engine.histograms import Histogram
from amplitude_intercom.engine.spool.user_state import Deferral, KnownContact
from amplitude_intercom.engine.status import GateStatus, LoopStatus, SpoolStatus

GATE = GateStatus("host", "well", 1667.0, 0, {"POST /events 202": 3}, {})
NOW_MS = 1_800_000_000_000


def said(**changes: object) -> list[str]:
    return list(status._intercom(msgspec.structs.replace(GATE, **changes)))


def test_an_intercom_that_answers_is_one_line() -> None:
    assert said() == ["answers; 3 calls since the start, 1,667 allowed in 10 s"]


@pytest.mark.parametrize(
    ("calls", "words"),
    [({}, "not called yet"), ({"POST /events 0": 3}, "has not answered yet")],
)
def test_an_endpoint_without_any_answer_is_not_called_well(
    calls: dict[str, int], words: str
) -> None:
    [line] = said(calls=calls, guessed=True)
    assert line.startswith(f"{words}; ")
    assert line.endswith("1,667 assumed in 10 s")


def test_an_endpoint_that_does_not_answer_is_named_with_its_cause_and_since_when() -> None:
    trouble = Trouble("POST /events", "503: unavailable", 48.0)
    first, second = said(health="outage", troubles=[trouble])
    assert first.startswith("does not answer all calls; ")
    assert second.startswith("POST /events for 48 s: 503: unavailable; ")


def test_a_refused_token_is_said_with_intercom_s_words() -> None:
    trouble = Trouble("", "401: Access Token Invalid", 180.0)
    first, second = said(health="unauthorized", troubles=[trouble])
    assert first.startswith("refuses the access token; ")
    assert second.startswith("for 3 min: 401: Access Token Invalid; ")


@pytest.mark.parametrize(
    ("deferred", "words"),
    [
        (None, ""),
        (Deferral(NOW_MS + 5_000, 0, ""), "; its second begins in 5.0 s"),
        (Deferral(NOW_MS - 5_000, 0, ""), ""),
        (
            Deferral(NOW_MS + 5_000, 2, ""),
            "; 2 calls failed in a row, it is not known whose fault that is; next try in 5.0 s",
        ),
        (
            Deferral(NOW_MS, 1, ""),
            "; 1 call failed in a row, it is not known whose fault that is; next try now",
        ),
        (
            Deferral(NOW_MS, 0, "POST /events"),
            "; POST /events does not answer, it goes on when that does",
        ),
    ],
)
def test_why_a_user_waits_is_said(deferred: Deferral | None, words: str) -> None:
    assert users._why(deferred, NOW_MS) == words


@pytest.mark.parametrize(
    ("contact", "words"),
    [
        (KnownContact("", [], 0), "none is known yet: the first write has no answer"),
        (KnownContact("5f", [], 0), "5f, as written or read last"),
        (KnownContact("5f", [], 0, is_lost=True), "5f is not there any more"),
        (KnownContact("5f", [], 0, owner="ann-lee"), "5f, which is that of ann-lee"),
    ],
)
def test_which_contact_a_user_has_is_said_as_it_is(contact: KnownContact, words: str) -> None:
    assert users._which(contact).startswith(words)


@pytest.mark.parametrize(
    ("per_s", "words"),
    [
        (0.0, ""),
        (1 / 600, "0.1 a minute"),
        (0.5, "30 a minute"),
        (1.0, "1 a second"),
        (12.34, "12.3 a second"),
        (1234.5, "1,234 a second"),
    ],
)
def test_a_rate_is_said_by_the_second_or_the_minute(per_s: float, words: str) -> None:
    assert status._rate(per_s) == words


def test_a_lag_of_the_event_loop_is_said_where_somebody_would_notice() -> None:
    lag = Histogram((1.0,)).value
    assert status._lag(None) == status._lag(LoopStatus(lag, 0.2)) == ""
    assert status._lag(LoopStatus(lag, 1.5)).endswith("late by up to 1.5 s in the last minutes")


def test_the_line_of_the_spool_says_what_the_disk_has_left() -> None:
    [(_, _, known)] = status._spool(SpoolStatus(1_000, disk_free_bytes=5_000_000_000), 10**9)
    [(_, _, unknown)] = status._spool(SpoolStatus(1_000), 10**9)
    assert known.startswith(unknown)
    assert known.endswith("; the disk has 5 GB left")
