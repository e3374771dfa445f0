"""Work on many records or dead letters, as rows: done in slices, resumed after a kill, cancelled.

Rules
=====
1. A job is a row before anything of it is done: what it is about (a filter, and up to where), how
   many that should be, who asked for it and why.
2. It goes on from its cursor. Cursor and counts change in the commit that does the slice. Letters
   are walked by when they failed last, records by id.
3. It is *waiting* until its last slice, then *done*. Cancelled, it is *cancelled* from the next
   slice on: what was done stays done. So it is with one that *failed*, by a fault of ours: those
   behind it go on.
4. Nobody cancels a re-keying: its sync delivers nothing before it is done.
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
from amplitude_intercom.engine.spool.rows import DeadLetterQuery
from amplitude_intercom.transports.reasons import RefusalReason

ENDED_KEPT: Final = 1_000
"""Jobs that are remembered once they have ended."""


class JobKind(enum.StrEnum):
    """What is done: with dead letters that people name, or with records that wait.

    ``EXPIRE`` buries events of a user whom Intercom still does not know when their retry window is
    over; ``REKEY`` works out again whose records are, after ``[sync.mapping]`` has changed.
    """

    REPLAY = "replay"
    DISCARD = "discard"
    EXPIRE = "expire"
    REKEY = "rekey"


class JobState(enum.StrEnum):
    """How far a job is."""

    WAITING = "waiting"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Expiry(msgspec.Struct, frozen=True, tag_field="of", tag="expiry"):
    """Events of a user that waits because of a failure: those accepted up to an instant."""

    user: str
    accepted_until_ms: int
    failure: Failure


class NewMapping(msgspec.Struct, frozen=True, tag_field="of", tag="new_mapping"):
    """How a contact is found now: ``identifier`` and ``from`` of ``[sync.mapping]``."""

    identifier: str
    source: str


class JobRow(msgspec.Struct, frozen=True):
    """A row of ``jobs``. ``up_to`` and ``cursor``: a ``Position`` as text; of records, only the id.

    ``up_to``: when the last letter had failed, and the highest id that there was, as the job was
    asked for. What has a later time or a higher id came later, and is not meant. (Both, since a
    clock may have been set back: a replayed letter that dies again has a higher id at least.)
    ``cursor``: the last that was looked at; empty: none yet. ``counts``: how many records or
    letters went where.
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
        """Whether nothing more of it will be done."""
        return self.state is not JobState.WAITING

    def outcome(self) -> Counter[str]:
        """Return how many letters went where.

        Raises:
            SpoolError: the job failed; what it had done stays done.
        """
        if self.state is JobState.FAILED:
            detail = f"job {self.id} met a fault of the program, which the log tells of"
            raise SpoolError(RefusalReason.SPOOL_FAILING, detail)
        return Counter(self.counts)


_COLUMNS = (
    "id, kind, sync, query, up_to, expected, who, why, made_at_ms, state, cursor, counts,"
    " ended_at_ms"
)


class Jobs:
    """The table ``jobs``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, new: Callable[[int], JobRow]) -> JobRow:
        """Keep a job, made of the number it gets."""
        (last,) = self._db.execute("SELECT max(id) FROM jobs").fetchone()
        job = new(int(last or 0) + 1)
        values = msgspec.structs.asdict(job)
        values["query"] = msgspec.json.encode(job.query).decode()
        values["counts"] = msgspec.json.encode(job.counts).decode()
        self._db.execute(
            f"INSERT INTO jobs ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})",
            [str(v) if isinstance(v, enum.StrEnum) else v for v in values.values()],
        )
        return job

    def get(self, id_: int) -> JobRow | None:
        """Return a job by its number."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (id_,)).fetchone()
        return _readable(row) if row else None

    def next(self) -> JobRow | None:
        """Return the first job that has not ended, and a re-keying before others."""
        id_ = self._next_id()
        if id_ is None:
            return None
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (id_,)).fetchone()
        return _job(row)

    def _next_id(self) -> int | None:
        for also in ("AND kind = 'rekey'", ""):
            row = self._db.execute(
                f"SELECT id FROM jobs WHERE state = 'waiting' {also} ORDER BY id LIMIT 1"
            ).fetchone()
            if row is not None:
                return int(row[0])
        return None

    def rekeying(self, sync: str) -> JobRow | None:
        """Return the last re-keying of a sync."""
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE kind = ? AND sync = ? ORDER BY id DESC LIMIT 1",
            (str(JobKind.REKEY), sync),
        ).fetchone()
        return _readable(row) if row else None

    def latest(self, limit: int) -> list[JobRow]:
        """Return the jobs that were asked for last, the latest first."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY id DESC LIMIT ?", (limit,))
        return [job for row in rows if (job := _readable(row)) is not None]

    def advance(self, job: JobRow, cursor: str, counts: Mapping[str, int]) -> None:
        """Keep how far a job has come, and what that did."""
        total = Counter(job.counts)
        total.update(counts)
        self._db.execute(
            "UPDATE jobs SET cursor = ?, counts = ? WHERE id = ?",
            (cursor, msgspec.json.encode(dict(total)).decode(), job.id),
        )

    def end(self, id_: int, state: JobState, now_ms: int) -> bool:
        """End a job, unless it has ended; forget the oldest that have. Returns whether it did."""
        ended = self._db.execute(
            "UPDATE jobs SET state = ?, ended_at_ms = ? WHERE id = ? AND state = 'waiting'",
            (str(state), now_ms, id_),
        ).rowcount
        self._db.execute(
            "DELETE FROM jobs WHERE state <> 'waiting' AND id <= ?", (id_ - ENDED_KEPT,)
        )
        return ended > 0

    def fail_first(self, now_ms: int) -> int | None:
        """End the first job that has not ended, readable or not; return its number, if any."""
        first = self._next_id()
        if first is not None:
            self.end(first, JobState.FAILED, now_ms)
        return first


_decode_query = msgspec.json.Decoder(DeadLetterQuery | Expiry | NewMapping).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode


def _readable(row: Any) -> JobRow | None:
    """Return a job; None of one that is damaged: nothing may stand still for it."""
    try:
        return _job(row)
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None


def _job(row: Any) -> JobRow:
    fields = dict(zip(JobRow.__struct_fields__, row, strict=True))
    fields["query"] = _decode_query(fields["query"])
    fields["counts"] = _decode_counts(fields["counts"])
    return JobRow(**{**fields, "kind": JobKind(fields["kind"]), "state": JobState(fields["state"])})
