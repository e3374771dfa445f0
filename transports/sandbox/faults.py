"""Faults and latency of a local Intercom or Amplitude."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.reasons import NoAnswerCause

HANG_S: Final = 120.0
LATENCY_SPREAD: Final = 0.5  # sigma of the log-normal law: the recordings' p95 is 2.3 medians

FAULT_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("unauthorized", "Access Token Invalid"),
    403: ("api_plan_restricted", "Active subscription needed."),
    404: ("not_found", "User Not Found"),
    408: ("request_timeout", "Request Timeout"),
    429: ("too_many_requests", "Too many requests"),
    500: ("server_error", "Server Error"),
    503: ("service_unavailable", "Sorry, the API service is temporarily unavailable"),
    504: ("server_timeout", "Server Timeout"),
}

NO_ANSWER: Final = {
    "hang": NoAnswerCause.TIMEOUT,
    "reset": NoAnswerCause.RESET,
    "half": NoAnswerCause.INCOMPLETE,
    "refuse": NoAnswerCause.REFUSED,
}

PROXY_PAGE: Final = b"<html><head><title>Bad Gateway</title></head><body>nginx</body></html>"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault that hits some calls, for some time.

    ``share`` of the matching calls is hit, by a seeded draw. ``start_s`` and ``end_s`` are seconds
    since the sandbox's start. ``path`` is a prefix; ``contains`` is a text of the body (a poison
    event). ``done``: whether a call is carried out before its answer is lost. Over HTTP ``refuse``
    is a connection that is reset.
    """

    kind: Literal["status", "html", "hang", "reset", "half", "refuse"]
    status: int = 500
    share: float = 1.0
    start_s: float = 0.0
    end_s: float = math.inf
    path: str = ""
    contains: str = ""
    done: bool = True

    def covers(self, since_start_s: float, request: Request) -> bool:
        """Return whether a call at this instant is one of those that can be hit."""
        return (
            self.start_s <= since_start_s < self.end_s
            and request.path.startswith(self.path)
            and (not self.contains or self.contains.encode() in (request.body or b""))
        )

    @property
    def keeps_out(self) -> bool:
        """Whether a call that is hit does not reach the workspace."""
        return self.kind in ("refuse", "html") or (self.kind in NO_ANSWER and not self.done)


class Reply(msgspec.Struct, frozen=True):
    """An answer, the fault that loses it on its way (``cut``, or empty), and its latency."""

    answer: Answer
    cut: str = ""
    latency_s: float = 0.0


def draw_fault(
    faults: Sequence[Fault], since_start_s: float, request: Request, dice: random.Random
) -> Fault | None:
    """Return the first fault that hits a call, by a draw for each one that covers it."""
    for fault in faults:
        if fault.covers(since_start_s, request) and dice.random() < fault.share:
            return fault
    return None


def draw_latency_s(latency_s: float | tuple[float, float], dice: random.Random) -> float:
    """Return the latency of one answer: by a median, or by the ends of an even distribution."""
    if isinstance(latency_s, tuple):
        return dice.uniform(*latency_s)
    if latency_s <= 0:
        return 0.0
    return latency_s * math.exp(dice.gauss(0.0, LATENCY_SPREAD))
