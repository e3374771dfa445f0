"""Refusals, counted and logged."""

from __future__ import annotations

import pytest

from amplitude_intercom.transports.reasons import UNTAKEN
from amplitude_intercom.transports.refusals import MAX_KEYS, OTHER_KEYS, Refusals, reason_of
from amplitude_intercom.transports.upload_answers import NOT_JSON, BadUpload, unknown_key


def test_a_kind_is_logged_at_most_once_a_second_with_how_many_were_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 100.0
    refusals = Refusals(lambda: now_s)
    for _ in range(50):
        refusals.note("/batch", NOT_JSON)
    refusals.note("/2/httpapi", NOT_JSON)
    now_s = 101.0
    refusals.note("/batch", NOT_JSON)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == [
        "refused a request at /batch",
        "refused a request at /2/httpapi",
        "refused a request at /batch",
    ]
    assert [line.rpartition("; ")[2] for line in lines if "more" in line] == [
        "49 more since the line before"
    ]


@pytest.mark.parametrize("reason", sorted(UNTAKEN))
def test_refusals_of_the_intake_are_counted_by_reason(reason: str) -> None:
    assert reason_of(BadUpload(503, f"Service unavailable: {reason}")) == reason


def test_keys_that_strangers_make_up_are_counted_together_once_there_are_many() -> None:
    refusals = Refusals()
    for n in range(3 * MAX_KEYS):
        refusals.note("/batch", unknown_key(f"key-{n}"))
    assert len(refusals.keys) == MAX_KEYS + 1
    assert refusals.keys[OTHER_KEYS] == 2 * MAX_KEYS
    assert sum(refusals.keys.values()) == refusals.counts["/batch", "unknown_key"]


def test_a_key_that_is_refused_again_and_again_is_named_among_many_strange_ones() -> None:
    refusals = Refusals()
    for n in range(2 * MAX_KEYS):
        refusals.note("/batch", unknown_key(f"key-{n}"))
    for n in range(20 * MAX_KEYS):
        refusals.note("/batch", unknown_key(f"another-{n}"))
        if n % (MAX_KEYS // 2) == 0:
            refusals.note("/batch", unknown_key("misspelt"))
    assert len(refusals.keys) == MAX_KEYS + 1
    assert refusals.keys["misspelt"] == 40
    assert sum(refusals.keys.values()) == refusals.counts["/batch", "unknown_key"]


def test_a_key_that_is_refused_in_turn_with_strangers_is_named_though_others_came_before() -> None:
    refusals = Refusals()
    for n in range(2 * MAX_KEYS):
        refusals.note("/batch", unknown_key(f"key-{n // 2}"))
    for n in range(1_000):
        refusals.note("/batch", unknown_key("misspelt"))
        refusals.note("/batch", unknown_key(f"another-{n}"))
    assert refusals.keys.most_common(2)[1] == ("misspelt", 1_000)
    assert len(refusals.keys) == MAX_KEYS + 1


def test_a_key_is_shown_without_control_characters() -> None:
    refusals = Refusals()
    refusals.note("/batch", unknown_key("\x1b[31m\x00" + "x" * 5_000))
    [key] = refusals.keys
    assert key.isprintable()
    assert len(key) <= 128
