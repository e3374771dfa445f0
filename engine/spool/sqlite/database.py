"""A spool's store, kept usable while its disk is not.

Rules
=====
1. A group of jobs is one transaction. A job that raises ``EngineError`` has changed nothing and
   fails alone; so does one with a fault of its own, for which the others are run again.
2. When the disk fails (a write, an fsync), nothing of the group is done. What was written of it may
   be in memory and not on the disk, where a later commit must not build upon it: so the log is
   folded into the file, without what failed, before the file is opened again. While that cannot be
   done either, there is ``trouble``, and it is tried again every ``HEAL_EVERY_S``.
3. When little of the disk is free, appends are refused, and what is only in the log is moved into
   the file while that can still grow; everything else, which makes room in the end, goes on. When
   the disk is full though, the reserve is let go for that. It is over once the disk has room for
   the reserve and as much again.
4. What the spool stands on (its folder, lock and file) is looked at before each group: where one is
   gone or was replaced, appends are refused; where it is the lock, another process may have the
   spool, and nothing is done at all.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import structlog

from amplitude_intercom.engine.errors import EngineError, SpoolDamaged, SpoolError
from amplitude_intercom.engine.spool.connection import Damaged
from amplitude_intercom.engine.spool.sqlite.files import SpoolFile, primary_code, reason_of
from amplitude_intercom.engine.spool.sqlite.ground import Ground
from amplitude_intercom.engine.spool.sqlite.reserve import Reserve
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Job = Callable[[Store], T]

HEAL_EVERY_S = 1.0
SHORT = "hardly anything of the disk is free"
NO_RESERVE = "the disk has too little room for `spool.reserve_bytes` and as much again"

_DISK = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_PERM,
    }
)
"""Result codes that concern the disk as a whole; others are about what a job asked for."""

_FAILURES = (sqlite3.Error, UnicodeDecodeError, Damaged)
"""What a database raises; its messages quote what is damaged, as bytes of any kind."""


class Opener(Protocol):
    """Opens a spool's store and its file; without ``recover``, the process that used it goes on."""

    def __call__(self, *, recover: bool) -> tuple[Store, SpoolFile]: ...


class Database:
    """One spool's store, in the hands of one thread; see the module's docstring."""

    def __init__(
        self,
        opener: Opener,
        reserve: Reserve,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the store, with the reserve's help where the disk is full.

        Raises:
            SpoolError: it cannot be opened.
        """
        self._opener = opener
        self._reserve = reserve
        self._monotonic_s = monotonic_s
        self._heal_at_s = 0.0
        self._closed = False
        self._ground: Ground | None = None
        self._is_lost = False
        self.trouble: SpoolError | None = None
        """Why the spool takes nothing in, or nothing at all; None when all is well."""
        self.damage: SpoolError | None = None
        """What the database said when something that was asked of it could not be read."""
        self.store, self.file = self._open(recover=True)
        if not reserve.take():
            self._run_out_of_disk(NO_RESERVE)

    def watch(self, ground: Ground) -> None:
        """Look at what the spool stands on from now on."""
        self._ground = ground

    def _open(self, *, recover: bool) -> tuple[Store, SpoolFile]:
        """Open the store. That takes room too, which on a full disk only the reserve has."""
        try:
            return self._opener(recover=recover)
        except SpoolError:
            if not self._reserve.is_short() or not self._reserve.release():
                raise
            return self._opener(recover=recover)

    def run(self, jobs: list[Job[Any]]) -> list[Any]:
        """Run jobs in one transaction; return a result or an exception for each."""
        if self._has_lost_ground():
            return self._without_ground(jobs)
        self._look_again()
        if self.trouble is None and self._reserve.is_short():
            self._run_out_of_disk(SHORT)
        if self._closed or not jobs:
            return [self.trouble for _ in jobs]
        try:
            return run_group(self.store, jobs)
        except _FAILURES as error:
            if primary_code(error) in _DISK:
                return self._disk_failed(jobs, error)
            return self._singly(jobs, self._as_damage(error))
        except Exception as fault:
            return self._singly(jobs, fault)

    def _has_lost_ground(self) -> bool:
        """Notice that the ground is gone, or there again."""
        if self._ground is not None and self._ground.has_lost_only_log:
            self._save_log()
        problem = self._ground.problem() if self._ground else ""
        if problem:
            self._note(SpoolError(RefusalReason.SPOOL_FAILING, problem))
            self.store.shut_intake(RefusalReason.SPOOL_FAILING)
        elif self._is_lost:
            self._heal_at_s = self._monotonic_s()
        self._is_lost = bool(problem)
        return self._is_lost

    def _save_log(self) -> None:
        """Fold a log that somebody has removed into the file, while it is open still."""
        with suppress(sqlite3.Error, SpoolError):
            self._open_again()
            _log.warning("the spool's log was removed: what it held is in the file now")

    def _without_ground(self, jobs: list[Job[Any]]) -> list[Any]:
        """Go on with what is open, so that deliveries are settled; not beside another process."""
        assert self._ground is not None
        if self._closed or self._ground.has_lost_lock:
            return [self.trouble for _ in jobs]
        try:
            return run_group(self.store, jobs) if jobs else []
        except _FAILURES as error:
            if primary_code(error) in _DISK:  # nothing may build upon what was written of it
                with suppress(sqlite3.Error):
                    self.file.fold()
                self.close()
                self._closed = True
            return [SpoolError(RefusalReason.SPOOL_FAILING, str(error)) for _ in jobs]
        except Exception as fault:
            return self._singly(jobs, fault)

    def _singly(self, jobs: list[Job[Any]], fault: Exception) -> list[Any]:
        """Run each of several jobs by itself; one that is alone already has failed."""
        return [fault] if len(jobs) == 1 else [self.run([job])[0] for job in jobs]

    def _as_damage(self, error: Exception) -> SpoolDamaged:
        damage = SpoolDamaged(RefusalReason.SPOOL_FAILING, str(error))
        if str(damage) != str(self.damage):
            _log.error("the spool cannot do what it is asked", error=str(error))
        self.damage = damage
        return damage

    def _disk_failed(self, jobs: list[Job[Any]], error: Exception) -> list[Any]:
        failed = SpoolError(reason_of(error), str(error))
        if failed.reason is not RefusalReason.DISK_FULL:
            self.heal(failed)
        else:
            had_reserve = self._reserve.release()
            self._run_out_of_disk(str(error))
            if had_reserve:
                return self.run(jobs)
        return [failed for _ in jobs]

    def _run_out_of_disk(self, detail: str) -> None:
        """Refuse appends, and let the rest have what room there is."""
        self._note(SpoolError(RefusalReason.DISK_FULL, detail))
        self._heal_at_s = self._monotonic_s() + HEAL_EVERY_S
        self.store.shut_intake(RefusalReason.DISK_FULL)
        with suppress(sqlite3.Error):
            self.file.claim_pages()  # before somebody else takes it

    def heal(self, trouble: SpoolError) -> None:
        """Set right what can be; say what trouble is left."""
        self._heal_at_s = self._monotonic_s() + HEAL_EVERY_S
        try:
            if self._closed or trouble.reason is RefusalReason.SPOOL_FAILING:
                self._open_again()
            if not self._reserve.take():
                self._run_out_of_disk(NO_RESERVE)
                return
            self.store.shut_intake(None)
            run_group(self.store, [lambda store: store.meta.set("last_trouble", str(trouble))])
        except sqlite3.Error as error:
            self._note(SpoolError(reason_of(error), str(error)))
        except SpoolError as error:
            self._note(error)
        else:
            _log.warning("the spool is well again", after=str(trouble))
            self.trouble = None

    def _look_again(self) -> None:
        """Heal, where there is trouble and it is time."""
        if self.trouble is not None and self._monotonic_s() >= self._heal_at_s:
            self.heal(self.trouble)

    def _open_again(self) -> None:
        if not self._closed:
            self.file.fold()
            with suppress(sqlite3.Error):
                self.store.close()
            self._closed = True
        self.store, self.file = self._open(recover=False)
        self._closed = False
        if self._ground is not None:
            self._ground.renew_log()

    def _note(self, trouble: SpoolError) -> None:
        if str(trouble) != str(self.trouble):
            _log.error("the spool is in trouble", trouble=str(trouble))
        self.trouble = trouble

    def tidy(self) -> bool:
        """Give a little of what the file does not need back to the disk; False: no more to do."""
        if self._closed:
            return False
        try:
            if not self.file.has_much_free(short=self.trouble is not None):
                if self.trouble is None and self.file.is_longer_than_needed():
                    self.file.fold()  # which cuts it; on a full disk it would take the turns of all
                return False
            run_group(self.store, [lambda _: self.file.give_back()])
        except (sqlite3.Error, OSError):
            return False  # the next job that writes will meet it
        return True

    def close(self) -> None:
        """Close the store."""
        with suppress(sqlite3.Error):
            self.store.close()


def run_group(store: Store, jobs: list[Job[Any]]) -> list[Any]:
    """Run jobs in one transaction; return a result or an ``EngineError`` for each.

    Whatever else is raised has undone all of it.
    """
    try:
        store.begin()
        results = [_attempt(job, store) for job in jobs]
        store.commit()
    except Exception:
        store.rollback()
        raise
    return results


def _attempt(job: Job[Any], store: Store) -> Any:
    try:
        return job(store)
    except EngineError as error:
        return error
