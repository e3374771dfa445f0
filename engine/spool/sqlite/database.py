"""A spool's store, usable through a full or failing disk.

Rules
=====
1. The work of many callers is one group, and a group is one transaction. Work that raises
   ``EngineError`` has changed nothing, and only that work fails. After any other exception the
   transaction is rolled back, and the work of each caller runs in a transaction of its own.
2. A failed write or fsync fails the whole group. Its pages may be in memory and not on disk, and no
   later commit may depend on them. So the log is folded into the file, without the failed
   transaction, and the file is opened again. If that fails too, the spool has a ``trouble``, and
   tries again every ``HEAL_EVERY_S``.
3. On a disk with little free space appends are refused, and the log's pages are moved into the file
   while the file can still grow. All other work goes on, because it frees bytes in the end. On a
   full disk the reserve is released for it. Appends are taken again when the disk has free space
   for the reserve and as much again.
4. Before each group the folder, the lock and the file are compared with those at the opening. If
   one is gone or was replaced, appends are refused. If it is the lock, another process may have the
   spool open, and no work is done.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import structlog

from amplitude_intercom.engine.errors import EngineError, SpoolDamaged, SpoolError
from amplitude_intercom.engine.spool.connection import Damaged
from amplitude_intercom.engine.spool.meta import Meta
from amplitude_intercom.engine.spool.sqlite.opened_files import OpenedFiles
from amplitude_intercom.engine.spool.sqlite.reserve import Reserve
from amplitude_intercom.engine.spool.sqlite.spool_file import SpoolFile, primary_code, reason_of
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)


class Transactions(Protocol):
    """The store that a database keeps usable: the tables with their transactions."""

    @property
    def meta(self) -> Meta: ...

    def begin(self) -> None: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def set_refusal(self, reason: RefusalReason | None) -> None: ...

    def close(self) -> None: ...


S = TypeVar("S", bound=Transactions)
S_co = TypeVar("S_co", bound=Transactions, covariant=True)

HEAL_EVERY_S = 1.0
"""Seconds between two attempts to end a trouble."""

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
"""Result codes that concern the disk or the whole file. Others concern one statement."""

_FAILURES = (sqlite3.Error, UnicodeDecodeError, Damaged)
"""Exceptions of a database. ``UnicodeDecodeError``: a message quotes damaged bytes."""


class Opener(Protocol[S_co]):
    """Opens a spool's store and file. ``recover`` marks the first opening by this process."""

    def __call__(self, *, recover: bool) -> tuple[S_co, SpoolFile]: ...


class Database(Generic[S]):
    """One spool's store, used by one thread. The module's docstring has the rules."""

    def __init__(
        self,
        opener: Opener[S],
        reserve: Reserve,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the store, with the reserve's bytes if the disk is full.

        Raises:
            SpoolError: the store cannot be opened.
        """
        self._opener = opener
        self._reserve = reserve
        self._monotonic_s = monotonic_s
        self._heal_at_s = 0.0
        self._closed = False
        self._opened: OpenedFiles | None = None
        self._is_lost = False
        self.trouble: SpoolError | None = None
        """The reason for refusing appends, or all work; None if there is none."""
        self.damage: SpoolError | None = None
        """The last error of the database about damage; None if there was none."""
        self.store, self.file = self._open(recover=True)
        if not reserve.take():
            self._run_out_of_disk(NO_RESERVE)

    def watch(self, opened: OpenedFiles) -> None:
        """Check the folder, the lock and the file before each group from now on."""
        self._opened = opened

    def _open(self, *, recover: bool) -> tuple[S, SpoolFile]:
        """Open the store, which writes: on a full disk only the reserve has bytes for it."""
        try:
            return self._opener(recover=recover)
        except SpoolError:
            if not self._reserve.is_short() or not self._reserve.release():
                raise
            return self._opener(recover=recover)

    def run(self, group: list[Callable[[S], Any]]) -> list[Any]:
        """Do a group of work in one transaction; return a result or an exception for each.

        Of an empty group only the disk and the files are checked.
        """
        if self._check_files():
            return self._without_files(group)
        # Before the group, so that a disk that is well again costs nobody a refusal.
        self._look_again()
        if self.trouble is None and self._reserve.is_short():
            # While some is left: work that frees bytes has to write to the log first.
            self._run_out_of_disk(SHORT)
        # A closed file could not be opened again. Until it can, no work is possible.
        if self._closed or not group:
            return [self.trouble for _ in group]
        try:
            return run_group(self.store, group)
        except _FAILURES as error:
            if primary_code(error) in _DISK:
                return self._disk_failed(group, error)
            return self._singly(group, self._as_damage(error))
        except Exception as fault:
            return self._singly(group, fault)

    def _check_files(self) -> bool:
        """Return whether the files are lost now, and refuse or accept appends by it."""
        if self._opened is not None and self._opened.has_lost_only_log:
            self._save_log()
        problem = self._opened.problem() if self._opened else ""
        if problem:
            self._note(SpoolError(RefusalReason.SPOOL_FAILING, problem))
            self.store.set_refusal(RefusalReason.SPOOL_FAILING)
        elif self._is_lost:
            self._heal_at_s = self._monotonic_s()  # the files are back: heal at once
        self._is_lost = bool(problem)
        return self._is_lost

    def _save_log(self) -> None:
        """Fold a log whose file was removed into the spool's file, while the log is still open."""
        with suppress(sqlite3.Error, SpoolError):
            self._open_again()
            _log.warning("the spool's log was removed: what it held is in the file now")

    def _without_files(self, group: list[Callable[[S], Any]]) -> list[Any]:
        """Do work on the open files, to settle deliveries, but not beside another process."""
        assert self._opened is not None
        if self._closed or self._opened.has_lost_lock:
            return [self.trouble for _ in group]
        try:
            return run_group(self.store, group) if group else []
        except _FAILURES as error:
            if primary_code(error) in _DISK:  # rule 2, but the file cannot be opened again
                with suppress(sqlite3.Error):
                    self.file.fold()
                self.close()
                self._closed = True
            return [SpoolError(RefusalReason.SPOOL_FAILING, str(error)) for _ in group]
        except Exception as fault:
            return self._singly(group, fault)

    def _singly(self, group: list[Callable[[S], Any]], fault: Exception) -> list[Any]:
        """Do each work in a transaction of its own. A single one has had that, and fails."""
        return [fault] if len(group) == 1 else [self.run([work])[0] for work in group]

    def _as_damage(self, error: Exception) -> SpoolDamaged:
        damage = SpoolDamaged(RefusalReason.SPOOL_FAILING, str(error))
        # Work that is tried again meets the same rows: they are said once.
        if str(damage) != str(self.damage):
            _log.error("the spool cannot do what it is asked", error=str(error))
        self.damage = damage
        return damage

    def _disk_failed(self, group: list[Callable[[S], Any]], error: Exception) -> list[Any]:
        failed = SpoolError(reason_of(error), str(error))
        if failed.reason is not RefusalReason.DISK_FULL:
            self.heal(failed)
        else:
            # It can be released once. After that a full disk has nothing to give.
            had_reserve = self._reserve.release()
            self._run_out_of_disk(str(error))
            if had_reserve:
                return self.run(group)
        return [failed for _ in group]

    def _run_out_of_disk(self, detail: str) -> None:
        """Refuse appends, and keep the free space for all other work."""
        self._note(SpoolError(RefusalReason.DISK_FULL, detail))
        self._heal_at_s = self._monotonic_s() + HEAL_EVERY_S
        self.store.set_refusal(RefusalReason.DISK_FULL)
        with suppress(sqlite3.Error):
            self.file.claim_pages()  # before another program fills the disk

    def heal(self, trouble: SpoolError) -> None:
        """End a trouble if possible; note the one that remains otherwise."""
        self._heal_at_s = self._monotonic_s() + HEAL_EVERY_S
        try:
            # A failed write may have left pages in memory alone (rule 2). A full disk has refused
            # it.
            if self._closed or trouble.reason is RefusalReason.SPOOL_FAILING:
                self._open_again()
            # Before appends are taken again: without a reserve the next full disk stops deliveries.
            if not self._reserve.take():
                self._run_out_of_disk(NO_RESERVE)
                return
            self.store.set_refusal(None)
            # A commit that proves that the disk takes writes, before anybody relies on it.
            run_group(self.store, [lambda store: store.meta.set("last_trouble", str(trouble))])
        except sqlite3.Error as error:
            self._note(SpoolError(reason_of(error), str(error)))
        except SpoolError as error:
            self._note(error)
        else:
            _log.warning("the spool is well again", after=str(trouble))
            self.trouble = None

    def _look_again(self) -> None:
        """Heal if there is a trouble, at most every ``HEAL_EVERY_S``."""
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
        if self._opened is not None:
            self._opened.renew_log()

    def _note(self, trouble: SpoolError) -> None:
        # Healing is tried every second: what it meets is said once.
        if str(trouble) != str(self.trouble):
            _log.error("the spool is in trouble", trouble=str(trouble))
        self.trouble = trouble

    def tidy(self) -> bool:
        """Return some free pages to the disk; return False if there is no more to do."""
        if self._closed:
            return False
        try:
            if not self.file.has_much_free(short=self.trouble is not None):
                if self.trouble is None and self.file.is_longer_than_needed():
                    self.file.fold()  # truncates the file; on a full disk it would delay all work
                return False
            run_group(self.store, [lambda _: self.file.give_back()])
        except (sqlite3.Error, OSError):
            return False  # the next work that writes meets the same error
        return True

    def close(self) -> None:
        """Close the store."""
        with suppress(sqlite3.Error):
            self.store.close()


def run_group(store: S, group: list[Callable[[S], Any]]) -> list[Any]:
    """Do a group of work in one transaction; return a result or an ``EngineError`` for each.

    Any other exception is raised, after a rollback.
    """
    try:
        store.begin()
        results = [_attempt(work, store) for work in group]
        store.commit()
    except Exception:
        store.rollback()
        raise
    return results


def _attempt(work: Callable[[S], Any], store: S) -> Any:
    try:
        return work(store)
    # It has changed nothing, so the transaction of the others goes on (rule 1).
    except EngineError as error:
        return error
