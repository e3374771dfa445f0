"""The audit: who changed what, and who signed in or was refused; in the log and in a file.

Rules
=====
1. An entry is a line of JSON in ``data_dir/audit.jsonl``, appended and fsynced. At ``FILE_BYTES``
   the file becomes ``audit.1.jsonl``, that ``audit.2.jsonl``, and so on; ``KEPT_FILES`` are kept.
2. A disk that fails refuses no change: the log has the entry, and says that the file has not. A
   disk that hangs is waited for ``WAIT_S``; at most ``MAX_WAITING`` entries wait for it.
3. A line that was cut off by a kill or a full disk is left out; the next entry begins a new line.
4. Refused sign-ins push nothing out: ``MAX_REFUSED`` are written in ``REFUSED_S``, then one of the
   next minute says how many were not.
5. Ids grow, also through restarts. No entry holds a secret: tokens have labels.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import structlog

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.disk import sync_folder, write_all
from amplitude_intercom.engine.log_lines import cut, printable

FILE_BYTES: Final = 1_000_000
KEPT_FILES: Final = 10
MAX_TEXT: Final = 256
"""Characters of one text of an entry."""

MAX_VERSIONS: Final = 10
WAIT_S: Final = 1.0
MAX_WAITING: Final = 200
MAX_REFUSED: Final = 30
REFUSED_S: Final = 60.0
_log = structlog.get_logger(__name__)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change, a sign-in, or a refused sign-in.

    ``who``: ``admin token``, ``read token``, ``loopback``, ``session of …``. ``peer``: the address.
    ``versions``: of what was changed, as ``before`` and ``after``.
    ``unwritten``: refused sign-ins before this one that were too many to write.
    """

    id: int
    time_ms: int
    who: str
    peer: str
    action: str
    what: str = ""
    versions: dict[str, str] = {}
    unwritten: int = 0


class AuditPage(msgspec.Struct, frozen=True):
    """Entries, the newest first. ``before``: for the next page; None: there is none."""

    entries: list[AuditEntry]
    before: int | None


class AuditFile:
    """The files of an audit, for one thread. Its ids go on where the newest line ends."""

    def __init__(self, data_dir: Path, file_bytes: int = FILE_BYTES) -> None:
        self._folder = data_dir
        self._file_bytes = file_bytes
        self._last_id: int | None = None

    def append(self, entry: AuditEntry) -> None:
        """Write an entry with the next id, durably.

        Raises:
            OSError: it is not written.
        """
        if self._last_id is None:
            newest = self.page(1, None).entries
            self._last_id = newest[0].id if newest else 0
        entry = msgspec.structs.replace(entry, id=self._last_id + 1)
        line = msgspec.json.encode(entry) + b"\n"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path(0), flags, 0o600)
        try:
            size = _regular_size(descriptor)
            begins_line = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
            write_all(descriptor, line if begins_line else b"\n" + line)
            self._last_id += 1  # even if it is not durable: an id is given once
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if size == 0:
            sync_folder(self._folder)
        if size + len(line) >= self._file_bytes:
            self._rotate()

    def page(self, limit: int, before: int | None) -> AuditPage:
        """Return up to ``limit`` entries with ids under ``before``, the newest first.

        Raises:
            OSError: a file cannot be read.
        """
        found: list[AuditEntry] = []
        for entry in self._newest_first():
            if before is not None and entry.id >= before:
                continue
            if len(found) == limit:
                return AuditPage(found, found[-1].id)
            found.append(entry)
        return AuditPage(found, None)

    def _newest_first(self) -> Iterator[AuditEntry]:
        for number in range(KEPT_FILES):
            for line in reversed(self._lines(number)):
                try:
                    yield msgspec.json.decode(line, type=AuditEntry)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue  # cut off, or written by somebody else

    def _lines(self, number: int) -> list[bytes]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path(number), flags)
        except FileNotFoundError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            size = _regular_size(descriptor)
            file.seek(max(0, size - 2 * self._file_bytes))  # more than that is not the audit's
            return file.read(2 * self._file_bytes).splitlines()

    def _rotate(self) -> None:
        """Give each file the next number; the oldest goes."""
        for number in reversed(range(KEPT_FILES - 1)):
            try:
                self._path(number).replace(self._path(number + 1))
            except FileNotFoundError:
                continue
        sync_folder(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / (f"audit.{number}.jsonl" if number else "audit.jsonl")


def _regular_size(descriptor: int) -> int:
    """Return the size of a file.

    Raises:
        OSError: it is a pipe, a device or the like.
    """
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise OSError("audit.jsonl is no regular file")
    return state.st_size


class Audit:
    """The audit of one data directory."""

    def __init__(
        self,
        file: AuditFile,
        now_ms: Callable[[], int],
        now_s: Callable[[], float] = loop_time_s,
    ) -> None:
        """Nothing is opened or written before the first entry."""
        self._file = file
        self._now_ms = now_ms
        self._now_s = now_s
        # A thread of its own: a disk that hangs takes none that others need.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._waiting = 0
        self._failing = False
        self._refused_from_s = 0.0
        self._refused = 0

    def close(self) -> None:
        """Begin no more writing; an entry that is being written is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def note(
        self,
        who: str,
        peer: str,
        action: str,
        what: str = "",
        *,
        versions: dict[str, str] | None = None,
        unwritten: int = 0,
    ) -> None:
        """Write an entry; return when it is on disk, or will not be soon. Raises nothing."""
        some = list((versions or {}).items())[:MAX_VERSIONS]
        entry = AuditEntry(
            id=0,
            time_ms=self._now_ms(),
            who=_shown(who),
            peer=_shown(peer),
            action=_shown(action),
            what=_shown(what),
            versions={_shown(name): _shown(version) for name, version in some},
            unwritten=unwritten,
        )
        said = msgspec.structs.asdict(entry)
        _log.info("audit", **{k: v for k, v in said.items() if v and k not in ("id", "time_ms")})
        await self._write(entry)

    async def note_refused(self, peer: str, why: str) -> None:
        """Write that somebody could not sign in, unless there are too many such entries."""
        now_s = self._now_s()
        if now_s >= self._refused_from_s + REFUSED_S or not self._refused:
            unwritten = max(0, self._refused - MAX_REFUSED)
            self._refused_from_s, self._refused = now_s, 0
        else:
            unwritten = 0
        self._refused += 1
        if self._refused <= MAX_REFUSED:
            await self.note("nobody", peer, "sign-in refused", why, unwritten=unwritten)

    async def page(self, limit: int, before: int | None = None) -> AuditPage:
        """Return up to ``limit`` entries that are older than the one with the id ``before``.

        Raises:
            OSError: the disk fails.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._file.page, limit, before)

    async def _write(self, entry: AuditEntry) -> None:
        if self._waiting >= MAX_WAITING:
            self._tell(f"{MAX_WAITING} entries wait for the disk already")
            return
        loop = asyncio.get_running_loop()
        self._waiting += 1
        writing = loop.run_in_executor(self._thread, self._file.append, entry)
        writing.add_done_callback(self._written)
        await asyncio.wait({writing}, timeout=WAIT_S)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._waiting -= 1
        fault = None if done.cancelled() else done.exception()
        if fault is not None:
            self._tell(getattr(fault, "strerror", None) or str(fault))
        elif self._failing:
            self._failing = False
            _log.info("the audit is written again")

    def _tell(self, cause: str) -> None:
        level = _log.warning if self._failing else _log.error
        self._failing = True
        level("an entry of the audit is in the log alone: its file cannot be written", cause=cause)


def _shown(text: str) -> str:
    return printable(cut(text, MAX_TEXT))
