"""The contract between deliveries and relays and the spool: its transactions, and their values.

A delivery hands work to its ``TakerSpool``. The work is done inside one transaction, beside that of
other takers, and returns once everything that it wrote is durable:

    delivery ── persist(work) ─► TakerSpool ═► one commit ── work(Transaction) ─► tables

The spool promises
==================
1. All that some work wrote is durable when ``persist`` or ``attempt`` returns, or none of it is.
2. Work is done in the order of submission. Work that raises costs no other work anything.
3. A failing disk delays ``persist`` and fails ``attempt``. Rows that stay damaged fail both.
4. A user's records are loaded in the order of acceptance. After ``recover`` all that has not ended
   is loaded again.
5. A record ends once: delivered, dropped, or as a dead letter. Until then it is pending. To settle
   a record that has ended changes nothing.
6. The second of an event is the same at each retry and replay, until its claim is forgotten
   (``sync.delivery.same_second_window_s``).

Deliveries and relays promise
=============================
1. Work stands being done again: it is, in a transaction of its own, after a failure of its group.
2. ``park`` and ``defer`` get the ids of all loaded records of the user. One that is left out could
   overtake the others.
3. Work of a cancelled call may or may not be done. Its records are settled once more, or the taker
   recovers.

``spool.spool`` implements ``TakerSpool``, ``spool.store`` implements ``Transaction``. Nothing here
touches a database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.spool.directory import ContactDirectory
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.meta import EventNamesTable, Meta, WorkspaceNumbers
from amplitude_intercom.engine.spool.relay_requests import LostEvent, WaitingRequest
from amplitude_intercom.engine.spool.tally import TakerTally
from amplitude_intercom.transports.contract import Original

T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True):
    """The bounds of one load.

    ``limit``, ``limit_bytes``: of all records; ``per_user``: of one user; ``updates``: of one user
    with identifies only, which become one call; ``parked`` and ``parked_bytes``: of parked users.
    ``after_id``: the last record that was read from the queue; without ``reads_queue`` none is.
    ``full``: users with ``per_user`` loaded records. ``empty``: users without a loaded record, and
    with more of them set aside. ``open_circuits``: endpoints with one; ``probes``: those of them
    that need a user for a probe. ``set_back_ms``: the step by which the wall clock went back;
    parked users are due earlier by it. ``queue_first``: the queue is read before the users set
    aside; the order alternates, so that neither takes all the space.
    """

    limit: int
    limit_bytes: int
    per_user: int
    now_ms: int
    parked: int = 1 << 30
    parked_bytes: int = 1 << 30
    after_id: int = 0
    updates: int = 1
    full: Collection[str] = ()
    empty: Sequence[str] = ()
    open_circuits: Collection[str] = ()
    probes: Collection[str] = ()
    reads_queue: bool = True
    set_back_ms: int = 0
    queue_first: bool = False


class Woken(msgspec.Struct, frozen=True):
    """Records of a waiting user that is due.

    ``is_retry``: the user was parked. ``failing``: its last call has failed. ``tries``: the
    endpoint with an open circuit that it probes, or an empty text.
    """

    user: str
    records: list[Record]
    is_retry: bool
    failing: bool
    tries: str = ""


class Loaded(msgspec.Struct, frozen=True):
    """Records for delivery, in order per user.

    ``records``: from the queue, up to ``last_id``. ``refilled``: of ``Wanted.empty``, by user; an
    empty list if none is left. ``worked_off``: users with more records than were loaded.
    ``next_wake_ms``, ``next_retry_ms``: the instants (Unix ms) at which the next deferred and the
    next parked user is due. ``awaited``: endpoints that users wait for. ``more``: whether the queue
    has more.
    """

    records: list[Record]
    woken: list[Woken]
    refilled: dict[str, list[Record]]
    last_id: int
    worked_off: Collection[str]
    next_wake_ms: int | None
    next_retry_ms: int | None
    awaited: Collection[str]
    more: bool


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The wish of an event for ``second``; ``claim_id`` is the same at each retry and replay."""

    claim_id: int
    user_key: str
    name: str
    second: int
    raw: bytes


class Given(NamedTuple):
    """The second of an event; ``crowded``: a different event has it too, since none was free."""

    second: int
    crowded: bool = False


def claim_of(record: Record, event: Mapping[str, Any]) -> Claim:
    """Return the claim of a record; ``event``: the fields of its call."""
    name, second = event["event_name"], event["created_at"]
    return Claim(record.claim_id, record.user_key, name, second, record.raw)


class QueuedRecords(Protocol):
    """The waiting records of one taker, in a transaction."""

    def load(self, wanted: Wanted) -> Loaded:
        """Return records to deliver next; see ``Wanted`` and ``Loaded``."""
        ...


class TakerRecords(Protocol):
    """The records of one taker in a transaction: how they end, and how their users wait."""

    def deliver(self, records: Sequence[Record], now_ms: int) -> None:
        """Settle records as delivered."""
        ...

    def drop(self, ids: Sequence[int], reason: str) -> None:
        """Settle records as dropped by a rule."""
        ...

    def bury(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Settle a record as a dead letter."""
        ...

    def updated(self, claim_ids: Sequence[int]) -> set[int]:
        """Return those of some records whose contact update is done."""
        ...

    def note_updated(self, claim_ids: Sequence[int]) -> None:
        """Note that the contact updates of some records are done."""
        ...

    def park(
        self,
        record: Record,
        others: Iterable[int],
        failure: Failure,
        wake_at_ms: int,
        now_ms: int,
    ) -> None:
        """Let a user wait until an instant, after its own failure with its first record.

        ``others``: the ids of its other loaded records.
        """
        ...

    def defer_after_failure(
        self, user: str, ids: Iterable[int], until_ms: int, now_ms: int
    ) -> None:
        """Let a user's records wait until an instant, after a failure that may not be its own."""
        ...

    def defer(self, user: str, ids: Iterable[int], until_ms: int, waits_for: str = "") -> None:
        """Let a user's records wait until an instant, or for an endpoint, without a failure."""
        ...

    def wake_deferred(self, user: str, at_ms: int) -> None:
        """Bring the wait of a user without a failure of its own forward to an instant."""
        ...

    def attempts(self, id_: int) -> int:
        """Return the failed attempts that a record was charged with."""
        ...

    def charge(self, id_: int, now_ms: int) -> int:
        """Charge an attempt to a record that waits; return its attempts so far."""
        ...

    def give_up(self, id_: int, failure: Failure, now_ms: int) -> None:
        """Bury a record after its last attempt, if its user still waits."""
        ...

    def failures(self, user: str) -> int:
        """Return how often in a row calls of a user have failed."""
        ...

    def forgive(self, user: str) -> None:
        """Forget the failures of a user: a call of it has succeeded."""
        ...

    def unknown(self, user: str) -> Stranger:
        """Return the attempts that have found a user unknown to Intercom."""
        ...

    def note_unknown(self, user: str, unknown: Stranger) -> None:
        """Keep the attempts that have found a waiting user unknown to Intercom."""
        ...

    def wake_for_update(self, user: str, now_ms: int) -> None:
        """Let an unknown user be due now, if a waiting record makes it known."""
        ...

    def expire(
        self, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> tuple[int, bool]:
        """Bury some of a parked user's events that were accepted up to an instant.

        Returns the number of them, and whether more are left.
        """
        ...


class RelayQueue(Protocol):
    """The waiting requests of relays, in a transaction."""

    def next(self, taker: int, after: int, limit: int) -> list[WaitingRequest]:
        """Return the next requests of a relay behind an id."""
        ...

    def original(self, id_: int) -> Original | None:
        """Return the request itself; None: it is gone.

        Raises:
            ValueError: it is damaged.
        """
        ...


class RelaySettling(Protocol):
    """The ends of requests, in a transaction."""

    def settle(
        self,
        taker: int,
        id_: int,
        delivered: Sequence[int],
        lost: Sequence[LostEvent],
        now_ms: int,
    ) -> int:
        """Settle events of a request, by index; return the number of events that are left."""
        ...


class Transaction(Protocol):
    """One transaction of the spool."""

    @property
    def contacts(self) -> ContactDirectory: ...

    @property
    def meta(self) -> Meta: ...

    @property
    def event_names(self) -> EventNamesTable: ...

    @property
    def workspaces(self) -> WorkspaceNumbers: ...

    @property
    def relayed(self) -> RelayQueue: ...

    @property
    def relaying(self) -> RelaySettling: ...

    def settling(self, taker: int) -> TakerRecords:
        """Return the records of a taker."""
        ...

    def queue(self, taker: int) -> QueuedRecords:
        """Return the waiting records of a taker."""
        ...

    def count_tally(self, taker: int, tally: Mapping[str, int]) -> None:
        """Add what a delivery has counted (``tally``)."""
        ...

    def ask_expiry(
        self, taker: int, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> None:
        """Ask for a job that goes on with ``TakerRecords.expire``."""
        ...


Work = Callable[[Transaction], T]
"""The work of one transaction."""


class TakerSpool(Protocol):
    """The part of the spool that belongs to one taker."""

    name: str
    taker: int
    """The taker's number in the tables."""
    workspace: int
    """The number of the workspace that it delivers to; 0 before that is known."""
    has_been_fed: bool
    """Whether a feed has loaded records of it since the spool was opened."""
    tally: TakerTally
    """Adjustments and calls that are not written yet."""
    appended: Callable[[], None]
    """Called after something was appended; set by the delivery or the relay."""

    @property
    def counters(self) -> Counter[str]:
        """The taker's counters, with batches that are counted but not yet written."""
        ...

    @property
    def trouble(self) -> SpoolError | None:
        """The reason for which nothing is taken in; None: none."""
        ...

    async def attempt(self, work: Work[T]) -> T:
        """Do work once, until it is durable.

        Raises:
            SpoolError: nothing of it was done.
        """
        ...

    async def persist(self, work: Work[T], tries: int = ...) -> T:
        """Do work until it is durable; a failing disk delays it.

        Raises:
            SpoolDamaged: the rows that it needs are damaged, at each of ``tries``.
        """
        ...

    async def recover(self) -> None:
        """Bring the tables to the state that a start finds: the last delivery was broken off."""
        ...

    async def parked(self) -> int:
        """Return the number of records that wait with parked users.

        Raises:
            SpoolError: the spool cannot be read.
        """
        ...

    async def checkpoints(self) -> dict[str, str]:
        """Return the checkpoints of the sources that can be read again, by source.

        Raises:
            SpoolError: the spool cannot be read.
        """
        ...

    async def forget_checkpoints(
        self, sources: Sequence[str], kept: Mapping[str, str] | None = None
    ) -> None:
        """Forget the checkpoints of some sources; ``kept`` replaces those of others.

        Raises:
            SpoolError: nothing of it was done.
        """
        ...

    def job_added(self) -> None:
        """Tell the job runner that a transaction has asked for a job."""
        ...

    async def event_names(self, workspace: int) -> dict[str, int]:
        """Return the event names that were sent to a workspace, with the day (since 1970) of the
        last time."""
        ...

    async def keep_event_names(self, workspace: int, last_days: Mapping[str, int]) -> None:
        """Replace the kept event names of a workspace."""
        ...

    async def claim_seconds(self, claims: Sequence[Claim]) -> list[Given]:
        """Give each event a second that no other one has; for good."""
        ...
