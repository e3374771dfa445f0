"""Jobs: work on many records or dead letters, in slices, resumed after a kill, and cancellable.

Rules
=====
1. A job is stored before its work begins: with a filter, an upper bound, the expected number, its
   requester and a reason.
2. A job goes on from its cursor. Cursor and counts change in the transaction of the slice. Letters
   are taken in order of their last failure, records in order of id.
3. A job is *waiting* until its last slice, then *done*. A *cancelled* job ends before its next
   slice; finished slices stay. A job that meets a fault of the program has *failed*, likewise, and
   the jobs behind it go on.
4. A re-keying cannot be cancelled, because its sync delivers nothing until it is done.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.letters import MOST, DeadLetterQuery
from amplitude_intercom.transports.reasons import RefusalReason

ENDED_KEPT: Final = 1_000
"""Ended jobs that are remembered."""


class JobKind(enum.StrEnum):
    """The kind of a job: ``REPLAY`` and ``DISCARD`` of dead letters, the others of records.

    ``EXPIRE`` makes dead letters of an unknown user's events at the end of their retry window.
    ``REKEY`` reads the user keys of records again, after a change of ``[sync.mapping]``.
    """

    REPLAY = "replay"
    DISCARD = "discard"
    EXPIRE = "expire"
    REKEY = "rekey"


class JobState(enum.StrEnum):
    """The state of a job."""

    WAITING = "waiting"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Expiry(msgspec.Struct, frozen=True, tag_field="of", tag="expiry"):
    """The events of a user that were accepted up to an instant, and the failure that ends them."""

    user: str
    accepted_until_ms: int
    failure: Failure


class NewMapping(msgspec.Struct, frozen=True, tag_field="of", tag="new_mapping"):
    """The new ``identifier`` and ``from`` of ``[sync.mapping]``."""

    identifier: str
    source: str


class JobRow(msgspec.Struct, frozen=True):
    """A row of ``jobs``. ``up_to`` and ``cursor``: a ``Position`` as text; only an id for records.

    ``up_to`` is the latest failure of a letter and the highest id at the request. A letter with a
    later failure or a higher id came later and is left alone. (Both count, because a clock may have
    been set back: a replayed letter that dies again has at least a higher id.) ``cursor`` is the
    last row examined, empty at first. ``counts`` has the number of rows by outcome.
    """

    id: int
    kind: JobKind
    sync: str
    query: DeadLetterQuery | Expiry | NewMapping
    up_to: str
    expected: int
    who: str
    why: str
    made_at_ms: int
    state: JobState = JobState.WAITING
    cursor: str = ""
    counts: dict[str, int] = {}
    ended_at_ms: int = 0

    @property
    def ended(self) -> bool:
        """Whether no further slice will run."""
        return self.state is not JobState.WAITING

    def outcome(self) -> Counter[str]:
        """Return the number of letters by outcome.

        Raises:
            SpoolError: the job failed; its finished slices stay.
        """
        # A part may be done. Without the error the counts would look like all of it.
        if self.state is JobState.FAILED:
            detail = f"job {self.id} met a fault of the program, which the log tells of"
            raise SpoolError(RefusalReason.SPOOL_FAILING, detail)
        return Counter(self.counts)


# In the order of the fields of `JobRow`, which `_job` pairs them with.
_COLUMNS = (
    "id, kind, sync, query, up_to, expected, who, why, made_at_ms, state, cursor, counts,"
    " ended_at_ms"
)


class Jobs:
    """The table ``jobs``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, new: Callable[[int], JobRow]) -> JobRow:
        """Store the job that ``new`` returns for its id."""
        # `end` never forgets the row with the highest id, so no id is given twice.
        (last,) = self._db.execute("SELECT max(id) FROM jobs").fetchone()
        job = new(int(last or 0) + 1)
        values = msgspec.structs.asdict(job)
        # As text, so that the `sqlite3` command shows a person what was asked for.
        values["query"] = msgspec.json.encode(job.query).decode()
        values["counts"] = msgspec.json.encode(job.counts).decode()
        self._db.execute(
            f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})",
            [str(v) if isinstance(v, enum.StrEnum) else v for v in values.values()],
        )
        return job

    def get(self, id_: int) -> JobRow | None:
        """Return a job by id; None without one, or if it is damaged."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (id_,)).fetchone()
        return _readable(row) if row else None

    def next(self) -> JobRow | None:
        """Return the first waiting job, a re-keying before others; None without one."""
        # A damaged job that is next raises here, and its caller fails it: skipped, it would be
        # looked at before each slice, and stay.
        id_ = self._next_id()
        if id_ is None:
            return None
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (id_,)).fetchone()
        return _job(row)

    def _next_id(self) -> int | None:
        # A re-keying first: its sync delivers nothing until it is done.
        for also in ("AND kind = 'rekey'", ""):
            row = self._db.execute(
                f"SELECT id FROM jobs WHERE state = 'waiting' {also} ORDER BY id LIMIT 1"
            ).fetchone()
            if row is not None:
                return int(row[0])
        return None

    def rekeying(self, sync: str) -> JobRow | None:
        """Return the last re-keying of a sync, if any."""
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE kind = ? AND sync = ? ORDER BY id DESC LIMIT 1",
            (str(JobKind.REKEY), sync),
        ).fetchone()
        return _readable(row) if row else None

    def latest(self, limit: int, below: int = MOST) -> list[JobRow]:
        """Return up to ``limit`` jobs with lower ids than ``below``, the latest first."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE id < ? ORDER BY id DESC LIMIT ?", (below, limit)
        )
        # A damaged row must not hide the others from a person.
        return [job for row in rows if (job := _readable(row)) is not None]

    def advance(self, job: JobRow, cursor: str, counts: Mapping[str, int]) -> None:
        """Store a job's cursor, and add to its counts."""
        # From the row as it was read in this transaction: after a rollback the slice counts anew.
        total = Counter(job.counts)
        total.update(counts)
        self._db.execute(
            "UPDATE jobs SET cursor = ?, counts = ? WHERE id = ?",
            (cursor, msgspec.json.encode(dict(total)).decode(), job.id),
        )

    def end(self, id_: int, state: JobState, now_ms: int) -> bool:
        """End a job and forget the oldest ended ones; return False if the job had ended already."""
        # The first end counts: a cancel may meet the last slice.
        ended = self._db.execute(
            "UPDATE jobs SET state = ?, ended_at_ms = ? WHERE id = ? AND state = 'waiting'",
            (str(state), now_ms, id_),
        ).rowcount
        # By number and not by time: a clock that jumps would forget all of them, or none.
        self._db.execute(
            "DELETE FROM jobs WHERE state <> 'waiting' AND id <= ?", (id_ - ENDED_KEPT,)
        )
        return ended > 0

    def fail_first(self, now_ms: int) -> int | None:
        """Fail the first waiting job, readable or not; return its id, if any."""
        # By its id alone: that its row cannot be read may be why it fails.
        first = self._next_id()
        if first is not None:
            self.end(first, JobState.FAILED, now_ms)
        return first


_decode_query = msgspec.json.Decoder(DeadLetterQuery | Expiry | NewMapping).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode


def _readable(row: Any) -> JobRow | None:
    """Return a row as a job; None if it is damaged, so that a damaged row stops no other job."""
    try:
        return _job(row)
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None


def _job(row: Any) -> JobRow:
    fields = dict(zip(JobRow.__struct_fields__, row, strict=True))
    fields["query"] = _decode_query(fields["query"])
    fields["counts"] = _decode_counts(fields["counts"])
    return JobRow(**{**fields, "kind": JobKind(fields["kind"]), "state": JobState(fields["state"])})
