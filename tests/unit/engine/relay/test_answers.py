"""What Amplitude's answers mean, a row each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.relay.answers import AnswerKind, judge
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.intercom import Answer

V2 = Original("POST", "/2/httpapi", "", "application/json", b"")
BATCH = Original("POST", "/batch", "", "application/json", b"")
FORM = Original("POST", "/identify", "", "", b"")


def answer(status: int, body: Any = b"", **headers: str) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, headers, text)


BAD = {"code": 400, "error": "Invalid field values on some events"}
KEY = {"code": 400, "error": "Invalid API key: 6eaecc"}
PAGE = b"<html><body>welcome</body></html>"


@pytest.mark.parametrize(
    ("sent", "answered", "kind"),
    [
        (V2, answer(200, {"code": 200, "events_ingested": 3}), AnswerKind.TAKEN),
        (V2, answer(200, b""), AnswerKind.NO_ANSWER),
        (V2, answer(200, b"success"), AnswerKind.NO_ANSWER),
        (V2, answer(200, PAGE), AnswerKind.NO_ANSWER),
        (V2, answer(200, {"code": "200"}), AnswerKind.NO_ANSWER),
        (V2, answer(200, {"code": True}), AnswerKind.NO_ANSWER),
        (V2, answer(200, {"code": 500}), AnswerKind.NO_ANSWER),
        (V2, answer(200, BAD), AnswerKind.REFUSED),
        (FORM, answer(200, b"success"), AnswerKind.TAKEN),
        (FORM, answer(200, b""), AnswerKind.TAKEN),
        (FORM, answer(200, PAGE), AnswerKind.NO_ANSWER),
        (FORM, answer(200, {"error": "of a proxy"}), AnswerKind.NO_ANSWER),
        (FORM, answer(200, {"code": 500}), AnswerKind.NO_ANSWER),
        (V2, answer(400, BAD), AnswerKind.REFUSED),
        (V2, answer(400, KEY), AnswerKind.BAD_KEY),
        (V2, answer(400, {"code": 400, "error": "Invalid API key"}), AnswerKind.BAD_KEY),
        (V2, answer(400, PAGE), AnswerKind.NO_ANSWER),
        (V2, answer(400, {"error": "of a proxy"}), AnswerKind.NO_ANSWER),
        (FORM, answer(400, b"missing_event"), AnswerKind.REFUSED),
        (FORM, answer(400, b"go away"), AnswerKind.NO_ANSWER),
        (V2, answer(401, {"code": 401}), AnswerKind.NO_ANSWER),
        (V2, answer(403, PAGE), AnswerKind.NO_ANSWER),
        (V2, answer(404, b""), AnswerKind.NO_ANSWER),
        (V2, answer(307, b"", location="/"), AnswerKind.NO_ANSWER),
        (V2, answer(413, PAGE), AnswerKind.TOO_LARGE),
        (V2, answer(413, {"code": 413, "error": "Payload too large"}), AnswerKind.TOO_LARGE),
        (V2, answer(429, b""), AnswerKind.BUSY),
        (V2, answer(429, PAGE), AnswerKind.NO_ANSWER),
        (V2, answer(500, {"code": 500}), AnswerKind.NO_ANSWER),
        (V2, answer(503, b""), AnswerKind.NO_ANSWER),
        (V2, answer(503, BAD), AnswerKind.NO_ANSWER),
    ],
)
def test_a_row_of_the_table(sent: Original, answered: Answer, kind: AnswerKind) -> None:
    assert judge(answered, sent, 3).kind is kind


def test_a_400_that_lists_events_names_the_fault_of_each() -> None:
    body = BAD | {
        "events_with_invalid_fields": {"time": [0, 2]},
        "events_with_missing_fields": {"event_type": [4]},
        "events_with_invalid_id_lengths": {"user_id": [5]},
        "silenced_events": [6],
        "throttled_events": [2, 7],
    }
    verdict = judge(answer(400, body), V2, 8)
    assert verdict.kind is AnswerKind.SORTED
    assert sorted(verdict.refused) == [0, 2, 4, 5, 6]
    assert verdict.refused[4].endswith(": event_type")
    assert (verdict.waiting, verdict.wait_s) == (frozenset({7}), 30.0)


@pytest.mark.parametrize(
    ("sent", "more", "wait_s"),
    [
        (V2, {}, 30.0),
        (BATCH, {}, 15.0),
        (BATCH, {"exceeded_daily_quota_devices": {"d": 500_900}}, 600.0),
    ],
)
def test_throttled_devices_wait_as_long_as_the_page_says(
    sent: Original, more: dict[str, Any], wait_s: float
) -> None:
    verdict = judge(answer(429, {"code": 429, "throttled_events": [1], **more}), sent, 3)
    assert (verdict.kind, verdict.waiting, verdict.wait_s) == (
        AnswerKind.SORTED,
        frozenset({1}),
        wait_s,
    )


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [("7", 7.0), ("999999", 600.0), ("0", 1.0), ("soon", 30.0), ("9" * 400, 30.0)],
)
def test_a_plain_429_is_waited_for_as_long_as_it_says_within_bounds(
    said: str, wait_s: float
) -> None:
    assert judge(answer(429, b"", **{"retry-after": said}), V2, 3).wait_s == wait_s


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = (
    "code error events_with_invalid_fields events_with_missing_fields throttled_events"
    " events_with_invalid_id_lengths silenced_events exceeded_daily_quota_users"
).split()


@given(
    status=st.integers(100, 599),
    body=st.dictionaries(st.sampled_from(NAMES), json_values) | st.binary(max_size=50),
    count=st.integers(0, 5),
)
def test_no_answer_means_anything_about_events_that_were_not_sent(
    status: int, body: Any, count: int
) -> None:
    verdict = judge(answer(status, body), V2, count)
    assert {*verdict.refused, *verdict.waiting} <= set(range(count))
    assert not verdict.refused.keys() & verdict.waiting
    assert len(verdict.said) <= 500
