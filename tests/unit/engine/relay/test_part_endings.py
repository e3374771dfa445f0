"""What becomes of a part by its answer, and by those of the parts before it."""

from __future__ import annotations

from amplitude_intercom.engine.relay.answers import AnswerKind, Verdict
from amplitude_intercom.engine.relay.part_endings import MOST_REFUSED, RefusalStreak, SentPart
from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.spool.relay_requests import WaitingRequest
from amplitude_intercom.transports.contract import Original

REQUEST = WaitingRequest(1, 0, "key", 1, [1], [0])
ORIGINAL = Original("POST", "/2/httpapi", "", "application/json", b"{}")


def judged(streak: RefusalStreak, kind: AnswerKind, times: int = 1) -> set[AnswerKind]:
    parts = [SentPart(RequestPart(REQUEST, [0]), Verdict(kind), ORIGINAL) for _ in range(times)]
    return {streak.judge(part).kind for part in parts}


def test_a_request_that_is_taken_begins_a_new_row_of_refusals() -> None:
    streak = RefusalStreak()
    for _ in range(2):
        assert judged(streak, AnswerKind.REFUSED, MOST_REFUSED) == {AnswerKind.REFUSED}
        assert judged(streak, AnswerKind.TAKEN) == {AnswerKind.TAKEN}
    judged(streak, AnswerKind.REFUSED, MOST_REFUSED)
    assert judged(streak, AnswerKind.REFUSED) == {AnswerKind.NO_ANSWER}
