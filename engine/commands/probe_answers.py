"""The findings that follow from the answers to a probe. Pure.

Rules for ``X-RateLimit-Remaining``
===================================
- Consecutive calls of one window are a *run*: the same ``Limit`` and ``Reset``.
- Only a server that counts *before* the call is charged ever says ``Remaining == Limit``. Where
  the next call of the run gets less, so that the number is a count at all, that settles it.
- ``Limit - 1`` at the beginning of a run says *after* where nobody else has called: each call of
  the run, and of the run before, got one less than the call before it. Of the first run of all
  nobody knows whether it began with its window.
- Everything else tells nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby, pairwise
from typing import Final

from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.transports.intercom import (
    Answer,
    ListedEvent,
    RateHeaders,
    named_contact,
    parse_error,
    says_archived,
)

SAME_EVENT: Final = "probe.same_event"
FUTURE_EVENT: Final = "probe.future_event"
REMAINING: Final = "probe.remaining"
LIVE_EMAIL: Final = "probe.live_email"
ARCHIVED_EMAIL: Final = "probe.archived_email"
ARCHIVED_ID: Final = "probe.archived_external_id"
KEPT: Final = "probe.kept"
LEFT: Final = "probe.left"
PROBE: Final = "probe"
"""What findings of a probe are called, behind the sync: one for each question, and for its end."""

AHEAD_WORDS: Final = "an event one hour ahead"

CONFLICTS: Final = {
    LIVE_EMAIL: "creating a contact with a new external id and the e-mail of a live contact",
    ARCHIVED_EMAIL: "creating a contact with a new external id and the e-mail of an archived one",
    ARCHIVED_ID: "creating a contact with the external id of an archived one",
}


def said(answer: Answer) -> str:
    """Return the status of an answer, with its code and message: ``400 (code): message``."""
    error = parse_error(answer)
    code = f" ({error.code})" if error.code else ""
    return f"{answer.status}{code}{f': {error.message}' if error.message else ''}"


# --- the same event twice -----------------------------------------------------------------


def same_event(kept: int, is_settled: bool, costs: bool | None, waited_s: float) -> Finding:
    """Return the finding about an event that was sent twice.

    ``kept``: how many of the two are listed; ``is_settled``: whether that was seen more than once;
    ``costs``: of the second call, None: it cannot be told.
    """
    cost = {
        True: "the second call costs one of the rate limit as well",
        False: "the second call costs nothing",
        None: "whether the second call costs cannot be told: others call meanwhile, or the headers"
        " do not say",
    }[costs]
    if kept > 1:
        text = "is kept twice: a call that is repeated makes a second event"
        return Finding("warning", SAME_EVENT, f"the same event sent twice {text}; {cost}")
    if kept and is_settled:
        return Finding("fact", SAME_EVENT, f"the same event sent twice is kept once; {cost}")
    text = (
        "whether the same event sent twice is kept once cannot be seen yet: Intercom lists"
        f" {'one' if kept else 'none'} of the two after {waited_s:.0f} s; {cost}"
    )
    return Finding("fact", SAME_EVENT, text)


def repeat_costs(rates: Sequence[RateHeaders]) -> bool | None:
    """Return whether the second of three calls was charged; None: it cannot be told.

    The first and the third are of kinds that are known to cost. A server that counts before a call
    is charged shows the second one's cost at the third, the other one at the second.
    """
    if len(rates) != 3 or len({(rate.limit, rate.reset_at_s) for rate in rates}) > 1:
        return None
    falls = _falls(rates)
    return {(1, 1): True, (1, 0): False, (0, 1): False}.get((falls[0], falls[1]))


def _falls(rates: Sequence[RateHeaders]) -> list[int]:
    return [(a.remaining or 0) - (b.remaining or 0) for a, b in pairwise(rates)]


# --- an event of the future ---------------------------------------------------------------


def future_event(answer: Answer, created_at: int, listed: Collection[ListedEvent]) -> Finding:
    """Return the finding about an event an hour ahead; ``listed``: the events that can be seen."""
    if answer.status >= 300:
        return Finding("fact", FUTURE_EVENT, f"{AHEAD_WORDS} is refused with {said(answer)}")
    is_listed = any(event.created_at == created_at for event in listed)
    seen = "listed with its own time" if is_listed else "not among the events that are listed yet"
    return Finding("fact", FUTURE_EVENT, f"{AHEAD_WORDS} is taken with {answer.status}, and {seen}")


# --- conflicts ----------------------------------------------------------------------------


def conflict(key: str, answer: Answer, ours: Collection[str]) -> Finding:
    """Return the finding about a create that shares a field; ``ours``: the ids made before.

    The engine goes on with the contact that a 409 names, so one that names none is a warning.
    """
    what = f"{CONFLICTS[key]} answers {answer.status}"
    if answer.status < 300:
        is_same = answer.contact.get("id") in ours
        made = "it is that contact, live" if is_same else "another contact is made"
        return Finding("fact", key, f"{what}: {made}")
    if answer.status != 409:
        return Finding("warning", key, f"{CONFLICTS[key]} answers {said(answer)}")
    what += f" ({parse_error(answer).code})"
    named = named_contact(parse_error(answer).message)
    if named is None:
        return Finding("warning", key, f"{what}, which names no id: {parse_error(answer).message}")
    if named not in ours:
        return Finding("warning", key, f"{what}, which names an id that is not the contact's")
    state = " and calls it archived" if says_archived(answer) else ""
    return Finding("fact", key, f"{what}, which names the contact's id{state}")


# --- the rate limit -----------------------------------------------------------------------


def counts_before(rates: Sequence[RateHeaders]) -> bool | None:
    """Return whether ``Remaining`` is the value before its call is charged; None: not told.

    ``rates``: of one caller's consecutive calls, each with all three headers.
    """
    runs = [list(run) for _, run in groupby(rates, lambda rate: (rate.limit, rate.reset_at_s))]
    if any(_begins_with(run, 0) and _falls(run)[0] > 0 for run in runs):
        return True
    for before, run in pairwise(runs):
        if _begins_with(run, 1) and _is_quiet(before) and _is_quiet(run):
            return False
    return None


def _begins_with(run: Sequence[RateHeaders], less: int) -> bool:
    return len(run) > 1 and run[0].remaining == (run[0].limit or 0) - less


def _is_quiet(run: Sequence[RateHeaders]) -> bool:
    """Return whether each call of a run got one less than the call before it."""
    return len(run) > 1 and set(_falls(run)) == {1}


def remaining(rates: Sequence[RateHeaders]) -> Finding:
    """Return whether ``Remaining`` counts the call that it answers, or why that is not known."""
    before = counts_before(rates)
    if before is not None:
        when = "before" if before else "after"
        text = f"`X-RateLimit-Remaining` is the value {when} its call is charged"
        return Finding("fact", REMAINING, text)
    text = "whether `X-RateLimit-Remaining` is the value before or after its call is charged cannot"
    return Finding("fact", REMAINING, f"{text} be told: {_why_untold(rates)}")


def _why_untold(rates: Sequence[RateHeaders]) -> str:
    if not rates:
        return "no answer has all three `X-RateLimit-*` headers"
    runs = [list(run) for _, run in groupby(rates, lambda rate: (rate.limit, rate.reset_at_s))]
    if any(fall > 1 for run in runs for fall in _falls(run)):
        return "others call with this access token; stop them, and probe again"
    if any(fall < 1 for run in runs for fall in _falls(run)):
        return "the value does not fall with each call"
    return "no window began meanwhile whose first call was surely this program's"
