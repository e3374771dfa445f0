"""The wait of a user after a failure, and its writing, inside the caller's transaction.

Rules
=====
1. After a failure with an unknown cause, or of the endpoint, a user waits some seconds, longer with
   each failure in a row, but no longer than an attempt's share of the retry window. A user with a
   charged first record keeps its back-off.
2. After a failure of its own, a user waits by the back-off over the retry window, which depends on
   the charged attempts. At a sick endpoint there are ``SICK_ATTEMPTS``, and no wait is longer than
   ``SICK_MOST_S``.
3. A user that Intercom does not know waits by the same back-off. Calls between two attempts (for a
   new event, for an identify) are no attempts: they neither move nor use up any. An event dies when
   all attempts have found the user unknown, and the event has waited for a whole window. These
   attempts charge no record, so a user that becomes known has all the attempts of rule 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.backoff import retry_delay_s, unknown_delay_s
from amplitude_intercom.engine.delivery.calls import NotAnswered
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    Failing,
    GoOn,
    PutBack,
    Unknown,
)
from amplitude_intercom.engine.delivery.health import Blame
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.settings import MAX_SHIFT_S
from amplitude_intercom.engine.spool.contract import Transaction
from amplitude_intercom.engine.spool.known_contacts import Stranger

SICK_ATTEMPTS: Final = 40
SICK_MOST_S: Final = 600.0


class Retries(msgspec.Struct, frozen=True):
    """A sync's back-off: ``attempts`` calls within ``window_s``; ``jitter`` returns [0, 1)."""

    attempts: int
    window_s: float
    jitter: Callable[[], float]

    @property
    def share_s(self) -> float:
        """An attempt's share of the window: the longest wait for an unknown cause."""
        return self.window_s / self.attempts

    def most_attempts(self, *, is_sick: bool) -> int:
        """Return the number of charged attempts after which a record dies."""
        return max(self.attempts, SICK_ATTEMPTS) if is_sick else self.attempts

    def own_wait_s(self, charged: int, *, is_sick: bool) -> float:
        """Return the seconds that a user waits after ``charged`` failures of its own."""
        wait_s = retry_delay_s(charged, self.attempts, self.window_s, self.jitter())
        return min(SICK_MOST_S, wait_s) if is_sick else wait_s

    def unknown_wait_ms(self, refusals: int) -> int:
        """Return the milliseconds to a user's next attempt, after ``refusals`` that got a 404."""
        if refusals >= self.attempts:
            return int(self.window_s * 1000) // self.attempts
        return int(retry_delay_s(refusals, self.attempts, self.window_s, self.jitter()) * 1000)


def is_due(at_ms: int, now_ms: int) -> bool:
    """Return whether an instant has come by the wall clock."""
    # No event is moved further ahead. So the clock was set back since, or the event's own time is
    # ahead of it, and its user must not wait for that.
    return not 0 < at_ms - now_ms <= MAX_SHIFT_S * 1000


def is_written(turn: Turn, ending: Ending) -> bool:
    """Return whether the end of a turn changes the spool."""
    match ending:
        case GoOn(succeeded=True):
            return turn.is_retry or turn.failed_before
        case GoOn() | PutBack():
            return False
    return True


def write_end(
    store: Transaction,
    taker: int,
    turn: Turn,
    ending: Ending,
    others: Sequence[int],
    retries: Retries,
    now_ms: int,
) -> bool:
    """Write the end of a turn. ``others`` has the ids of its user's other loaded records.

    Returns whether a job was requested.
    """
    match ending:
        case GoOn():
            store.settling(taker).forgive(turn.user)
        case Deferred(back, until_ms):
            ids = [*(record.id for record in back), *others]
            store.settling(taker).defer(turn.user, ids, until_ms)
        # The failure is the first record's: the calls of the others were not made.
        case Failing([first, *back], evidence):
            ids = [*(record.id for record in back), *others]
            fail(store, taker, first, ids, evidence, retries, now_ms)
        case Unknown([first, *back], failure):
            ids = [*(record.id for record in back), *others]
            return park_unknown(store, taker, first, ids, failure, retries, now_ms)
    return False


def fail(
    store: Transaction,
    taker: int,
    record: Record,
    others: Iterable[int],
    evidence: NotAnswered,
    retries: Retries,
    now_ms: int,
) -> None:
    """Have a user wait after a failure. ``others`` has the ids of its other loaded records."""
    assert evidence.failure is not None
    settling = store.settling(taker)
    charged = settling.attempts(record.id)
    if evidence.blame is Blame.OWN:
        wait_s = retries.own_wait_s(charged + 1, is_sick=evidence.is_sick)
    elif charged:
        # An outage must not shorten the back-off of a record that was charged before it, nor
        # lengthen it by an attempt: nobody is charged while a circuit is open.
        wait_s = retries.own_wait_s(charged, is_sick=evidence.is_sick)
    else:
        # Counted by user and not by record, and kept on disk: else each restart, and each new
        # record, would begin with the shortest wait again.
        failures = settling.failures(record.user_key) + 1
        wait_s = min(unknown_delay_s(failures, retries.jitter()), retries.share_s)
    wake_at_ms = now_ms + int(wait_s * 1000)
    if evidence.blame is Blame.OWN:
        settling.park(record, others, evidence.failure, wake_at_ms, now_ms)
    else:
        ids = [record.id, *others]
        settling.defer_after_failure(record.user_key, ids, wake_at_ms, now_ms)


def charge(
    store: Transaction, taker: int, id_: int, evidence: NotAnswered, retries: Retries, now_ms: int
) -> None:
    """Charge an attempt to a record after its user's own failure.

    The last attempt ends the record, unless a further try is under way.
    """
    assert evidence.failure is not None
    settling = store.settling(taker)
    charged = settling.charge(id_, now_ms)
    # An endpoint that fails at random for a share of all calls must kill no record: so the attempts
    # are those of the endpoint's health now.
    if charged >= retries.most_attempts(is_sick=evidence.is_sick):
        settling.give_up(id_, evidence.failure, now_ms)


def park_unknown(
    store: Transaction,
    taker: int,
    record: Record,
    others: Iterable[int],
    failure: Failure,
    retries: Retries,
    now_ms: int,
) -> bool:
    """Have a user wait after a 404, and end events that have waited for the whole window.

    Returns whether a job was requested for the rest of them.
    """
    settling, user = store.settling(taker), record.user_key
    refusals, attempt_at_ms, _ = settling.unknown(user)
    window_ms = int(retries.window_s * 1000)
    # A try before its time (a new event, an identify) burns no attempt. Ten failing identifies in
    # some seconds once killed an event that was to wait for four hours.
    if now_ms >= attempt_at_ms:
        refusals += 1
        attempt_at_ms = now_ms + retries.unknown_wait_ms(refusals)
    settling.park(record, others, failure, attempt_at_ms, now_ms)
    settling.note_unknown(user, Stranger(refusals, attempt_at_ms, now_ms))
    if record.kind is Kind.EVENT and not record.may_create:
        # An identify that waits would make the user known: waiting for the next attempt would be
        # for nothing. After any other record, the one that makes the user known was just tried.
        settling.wake_for_update(user, now_ms)
    if refusals < retries.attempts:
        return False
    # With one attempt there is no window to wait for.
    if retries.attempts == 1:
        settling.charge(record.id, now_ms)
        settling.give_up(record.id, failure, now_ms)
    # Events that came later have not had a whole window yet, and stay. There may be any number of
    # events, so the rest is a job in slices.
    _, more = settling.expire(user, failure, now_ms - window_ms, now_ms)
    if more:
        store.ask_expiry(taker, user, failure, now_ms - window_ms, now_ms)
    return more
