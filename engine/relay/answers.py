"""The meaning of Amplitude's answers for the events of a request: pure.

| answer | means |
|---|---|
| 200 with ``code``; of a form any 200 that is no page | taken |
| 400 that lists events | these are refused; of those listed as throttled, their devices wait |
| 400 ``Invalid API key`` | nothing of this key is taken |
| any other 400 of Amplitude | all of it is refused |
| 413 | it is too large: halves; a single event is refused |
| 429 that lists events | their devices wait, the others go again |
| any other 429 | everybody waits |
| anything else, a page of HTML with any status | no answer: somebody between spoke |

The lists are those of HTTP V2 and Batch (their pages); SDKs drop what a 400 lists and hold back
what a 429 lists, for 30 s, or 15 s at Batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.intercom import Answer
from amplitude_intercom.transports.originals import is_json

HTTP_V2_WAIT_S: Final = 30.0
BATCH_WAIT_S: Final = 15.0
"""How long to hold back what is throttled (HTTP V2 and Batch pages)."""

QUOTA_WAIT_S: Final = 600.0
"""How long a device waits that has used up its day: it is a sliding one."""

LONGEST_WAIT_S: Final = 600.0
MAX_SAID: Final = 500
"""Characters of an answer that are kept."""

PLAIN_REFUSALS: Final = frozenset({"missing_event", "invalid_event_field", "bad_checksum"})
"""Texts with which the older endpoints refuse (clients' sources)."""

INVALID_KEY: Final = "Invalid API key"
SHORTEST_WAIT_S: Final = 1.0


class AnswerKind(Enum):
    """The kinds of answers."""

    TAKEN = "taken"
    SORTED = "sorted"
    """Some events are refused, or their devices wait; the others go again at once."""
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    BAD_KEY = "bad_key"
    BUSY = "busy"
    NO_ANSWER = "no_answer"


class Verdict(msgspec.Struct, frozen=True):
    """The meaning of an answer. ``refused``: events by index, with Amplitude's reasons.

    ``waiting``: events whose devices are to be held back for ``wait_s``. ``said``: for people.
    """

    kind: AnswerKind
    status: int = 0
    said: str = ""
    refused: Mapping[int, str] = {}
    waiting: frozenset[int] = frozenset()
    wait_s: float = 0.0


def judge(answer: Answer, sent: Original, count: int) -> Verdict:
    """Return the verdict on a request of ``count`` events. Never raises."""
    body = _object(answer.body)
    code = body.get("code")
    status = code if type(code) is int and answer.status < 300 else answer.status
    said = _said(answer, body)
    if status == 413:
        return Verdict(AnswerKind.TOO_LARGE, status, said)
    if status == 429 and not _is_page(answer):
        return _throttled(answer, body, sent, count, said)
    if status == 400:
        return _refused(body, sent, count, said)
    if status == 200 and (code == 200 or (not is_json(sent) and _is_success(answer, body))):
        return Verdict(AnswerKind.TAKEN, status)
    return Verdict(AnswerKind.NO_ANSWER, answer.status, said)


def _is_success(answer: Answer, body: Mapping[str, Any]) -> bool:
    """Whether a 200 of an older endpoint is Amplitude's. Its body is not documented; clients look
    at the status alone."""
    return not _is_page(answer) and not body.keys() & {"error", "code"}


def _refused(body: Mapping[str, Any], sent: Original, count: int, said: str) -> Verdict:
    if body.get("code") != 400 and said not in PLAIN_REFUSALS:
        return Verdict(AnswerKind.NO_ANSWER, 400, said)  # of a firewall, say
    error = str(body.get("error", ""))
    if error.startswith(INVALID_KEY):
        return Verdict(AnswerKind.BAD_KEY, 400, INVALID_KEY)  # the key itself is in nobody's log
    refused = dict(_listed(body, error, count))
    waiting = _indexes(body.get("throttled_events"), count) - refused.keys()
    if not refused and not waiting:
        return Verdict(AnswerKind.REFUSED, 400, said)
    wait_s = _wait_s(sent) if waiting else 0.0
    return Verdict(AnswerKind.SORTED, 400, said, refused, waiting, wait_s)


def _listed(body: Mapping[str, Any], error: str, count: int) -> Iterator[tuple[int, str]]:
    """Yield the events that a 400 lists, and why."""
    for name in ("missing_fields", "invalid_fields", "invalid_id_lengths"):
        lists = body.get(f"events_with_{name}")
        for field, indexes in lists.items() if isinstance(lists, dict) else ():
            for index in _indexes(indexes, count):
                yield index, f"{error}: {field}"[:MAX_SAID]
    for index in _indexes(body.get("silenced_events"), count):
        yield index, error or "silenced"


def _throttled(
    answer: Answer, body: Mapping[str, Any], sent: Original, count: int, said: str
) -> Verdict:
    waiting = _indexes(body.get("throttled_events"), count)
    wait_s = _wait_s(sent)
    if body.get("exceeded_daily_quota_devices") or body.get("exceeded_daily_quota_users"):
        wait_s = QUOTA_WAIT_S
    if not waiting:
        return Verdict(AnswerKind.BUSY, 429, said, wait_s=_retry_after_s(answer, wait_s))
    return Verdict(AnswerKind.SORTED, 429, said, waiting=waiting, wait_s=wait_s)


def _wait_s(sent: Original) -> float:
    return BATCH_WAIT_S if sent.path == "/batch" else HTTP_V2_WAIT_S


def _retry_after_s(answer: Answer, default_s: float) -> float:
    text = answer.headers.get("retry-after", "")
    return (
        min(max(float(text), SHORTEST_WAIT_S), LONGEST_WAIT_S)
        if text.isdecimal() and len(text) < 9
        else default_s
    )


def _indexes(found: Any, count: int) -> frozenset[int]:
    """Return the indexes of a list that are some of a request."""
    listed: Iterable[Any] = found if isinstance(found, list) else ()
    return frozenset(index for index in listed if type(index) is int and 0 <= index < count)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_page(answer: Answer) -> bool:
    kind = answer.headers.get("content-type", "").lower()
    return "html" in kind or answer.body.lstrip()[:1] == b"<"


def _said(answer: Answer, body: Mapping[str, Any]) -> str:
    """Return an answer in words: its error, or the beginning of its text."""
    text = str(body.get("error") or answer.body[:MAX_SAID].decode("utf-8", "replace"))
    shown = "".join(c if c.isprintable() else " " for c in text[:MAX_SAID]).strip()
    return shown or f"status {answer.status}, without a text"
