"""The log: lines on stderr that can neither raise in nor hold up the code that writes them.

Rules
=====
1. A line is rendered by its caller, bounded in length, and put in a queue that holds ``MAX_LINES``.
   One thread writes the queue to stderr. Only that thread ever waits for the reader of stderr.
2. A line that cannot be rendered, queued or written is dropped and counted (``lines_lost``).
3. Of one kind of line (its event text) at most ``KIND_LINES_PER_S`` are written a second. A line
   after that second says how many more there were.
4. The thread is a daemon thread, and ``flush`` waits a bounded time, so that the process ends even
   while nobody reads.

``structlog``, the standard library's ``logging``, warnings, and exceptions that nobody caught in a
thread, in a finalizer or in the main thread all come this way; so does what commands print on
stderr (``stderr_taken``).
"""

from __future__ import annotations

import io
import logging
import os
import queue
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final

import structlog

from amplitude_intercom.engine.log_lines import (
    HumanLine,
    cut,
    json_line,
    render,
)
from amplitude_intercom.engine.settings import Log

MAX_LINES: Final = 1_024
"""Lines that wait for the writing thread; with ``MAX_LINE_BYTES`` they bound its memory."""


KIND_LINES_PER_S: Final = 100
"""Lines of one kind a second: what a person can use, at under a hundredth of a core."""

MAX_KINDS: Final = 1_024
WRITE_BYTES: Final = 4_096
"""Short lines are written together up to this size, which a pipe takes whole or not at all (POSIX
``PIPE_BUF`` on Linux)."""

LOOK_EVERY_S: Final = 1.0
"""Between looks for lines that were left out and not spoken of yet."""

FLUSH_S: Final = 1.0
"""How long the end of the process waits for the reader of stderr."""


# --- how many lines of a kind -------------------------------------------------------------


class Rates:
    """Counts lines by kind, and says which are too many; ``now_s`` is a monotonic clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.RLock()
        self._second = 0
        self._written: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def takes(self, kind: str) -> bool:
        """Return whether a line of this kind is written; one that is not is counted."""
        with self._lock:
            self._turn()
            if kind not in self._written and len(self._written) >= MAX_KINDS:
                kind = "another kind"
            counts = self._written if self._written[kind] < KIND_LINES_PER_S else self._left_out
            counts[kind] += 1
            return counts is self._written

    def take_overdue(self) -> dict[str, int]:
        """Return by kind how many were left out in the seconds that are over, and begin anew."""
        with self._lock:
            if not self._left_out or self._second == int(self._now_s()):
                return {}
            left_out, self._left_out = self._left_out, Counter()
            return dict(left_out)

    def _turn(self) -> None:
        second = int(self._now_s())
        if second != self._second:
            self._second = second
            self._written.clear()


# --- the thread that writes ---------------------------------------------------------------


class LineWriter:
    """Writes lines to a descriptor in a thread of its own; see the module's rules.

    ``put`` may be called from any thread, and by a finalizer in the middle of another ``put``: so
    the lock is re-entrant and the queue is the one that allows that.
    """

    def __init__(
        self, descriptor_of: Callable[[], int], look: Callable[[], None] = lambda: None
    ) -> None:
        """``descriptor_of`` returns where to write, and raises where there is nothing.

        ``look`` is called in the thread after each write, and every ``LOOK_EVERY_S``.
        """
        self._descriptor_of = descriptor_of
        self._look = look
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._torn = False
        self.lost = 0
        """Lines that were dropped."""

    def lose(self, count: int = 1) -> None:
        """Count lines that are dropped."""
        with self._lock:
            self.lost += count

    def put(self, line: bytes) -> None:
        """Queue a line, or drop and count it where too many wait; never waits, never raises."""
        if self._queue.qsize() < MAX_LINES and self._start_thread():
            self._queue.put(line)
        else:
            self.lose()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines put before are written or lost; return whether that was in time."""
        reached = threading.Event()
        if self._thread is None:
            return True
        self._queue.put(reached)
        return reached.wait(timeout_s)

    def _start_thread(self) -> bool:
        """Start the thread once; False where the system has none to spare."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
        return self._thread is not None

    def _run(self) -> None:
        while True:
            try:
                with suppress(queue.Empty):
                    self._write_next(self._queue.get(timeout=LOOK_EVERY_S))
                self._look()
            except Exception:  # a thread that ended would lose every line behind this one
                self.lose()

    def _write_next(self, first: bytes | threading.Event) -> None:
        """Write a line together with those behind it, as far as they go into one write."""
        lines: list[bytes] = []
        size = 0
        line: bytes | threading.Event | None = first
        while isinstance(line, bytes):
            if lines and size + len(line) > WRITE_BYTES:
                self._write(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
            line = self._waiting()
        self._write(lines)
        if line is not None:
            line.set()

    def _waiting(self) -> bytes | threading.Event | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _write(self, lines: list[bytes]) -> None:
        """Write lines in one piece; those that do not get through whole are lost."""
        data = (b"\n" if self._torn and lines else b"") + b"".join(lines)
        written = 0
        try:
            while written < len(data):
                written += _write_some(self._descriptor_of(), data[written:])
            self._torn = False
        except Exception:  # closed, full, gone: whatever it is, it is not to end the thread
            self.lose(data[written:].count(b"\n"))
            self._torn = self._torn if not written else data[written - 1 : written] != b"\n"


def _write_some(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # somebody made it non-blocking; waiting is this thread's work
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll()
        return os.write(descriptor, data)


# --- what comes in ------------------------------------------------------------------------


def _stderr() -> int:
    """Return stderr's descriptor.

    Raises:
        ValueError: it was closed when the process started; another file may have its number.
    """
    if sys.__stderr__ is None:
        raise ValueError("stderr is closed")
    return sys.__stderr__.fileno()


def _say_what_was_left_out() -> None:
    """Queue a line for each kind of which some were left out; called in the writing thread."""
    for kind, count in _rates.take_overdue().items():
        stamped = _stamp(None, "", {"event": "lines left out", "level": "info", "of": kind})
        _writer.put(render({**stamped, "count": count}, _line_of))


_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
_writer = LineWriter(_stderr, _say_what_was_left_out)
_rates = Rates()
_debugging = False
_line_of: Callable[[dict[str, Any]], bytes] = json_line


def debugging() -> bool:
    """Return whether lines of the level `debug` are written: most cost a look at an event."""
    return _debugging


def lines_lost() -> int:
    """Return how many lines of the log were dropped since the start of the process."""
    return _writer.lost


def flush(timeout_s: float = FLUSH_S) -> bool:
    """Wait until all lines are written or lost; return whether that was within ``timeout_s``."""
    return _writer.flush(timeout_s)


class _Stderr(io.TextIOBase):
    """A replacement of ``sys.stderr`` that writes through the log's queue."""

    encoding = getattr(sys.__stderr__, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Queue a text; never waits, never raises."""
        if text:
            _writer.put(text.encode(self.encoding, "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether people read it."""
        return sys.__stderr__ is not None and sys.__stderr__.isatty()

    def fileno(self) -> int:
        """Return the descriptor, for whoever asks how wide the terminal is."""
        return _stderr()


@contextmanager
def stderr_taken() -> Iterator[None]:
    """Send all that is printed on stderr the way of the log; at the end wait for its reader.

    That wait is bounded by ``FLUSH_S``.
    """
    before, sys.stderr = sys.stderr, _Stderr()
    try:
        yield
    finally:
        sys.stderr = before
        flush()


def _take(entry: dict[str, Any]) -> None:
    """Queue an entry's line, or leave it out; a line that cannot be rendered is lost."""
    try:
        if _rates.takes(cut(str(entry.get("event", "")), 64)):
            with_exception = structlog.processors.format_exc_info(None, "", entry)
            _writer.put(render(_stamp(None, "", with_exception), _line_of))
    except Exception:
        _writer.lose()


def _end_of_chain(
    _: Any, level: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    _take({**entry, "level": level})
    raise structlog.DropEvent  # nothing is left for structlog's own logger


def _logger_of(level: int) -> type[structlog.typing.FilteringBoundLogger]:
    """Return structlog's logger of a level, made unable to raise."""
    filtering: Any = structlog.make_filtering_bound_logger(level)

    class Logger(filtering):  # type: ignore[misc]  # structlog makes it when it is asked
        def _proxy_to_logger(self, method_name: str, event: str | None = None, **more: Any) -> None:
            try:
                super()._proxy_to_logger(method_name, event, **more)
            except Exception:
                _writer.lose()

    return Logger


class _Handler(logging.Handler):
    """Takes the lines of libraries, which use the standard library's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        try:
            entry = {"event": record.getMessage(), "logger": record.name}
        except Exception:  # its arguments do not fit its text
            entry = {"event": str(record.msg), "logger": record.name}
        level = record.levelname.lower()
        _take({**entry, "level": level, "exc_info": record.exc_info or None})


def configure(log: Log) -> None:
    """Send all messages of this process to stderr: for people on a terminal, else as JSON lines."""
    global _line_of, _debugging
    _debugging = log.level == "debug"
    stderr = _Stderr()
    human = log.format == "human" or (log.format == "auto" and stderr.isatty())
    human_line = HumanLine(colors=stderr.isatty(), encoding=stderr.encoding)
    _line_of = human_line if human else json_line
    level = logging.getLevelNamesMapping()[log.level.upper()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _end_of_chain],
        wrapper_class=_logger_of(level),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Handler()], level=max(level, logging.WARNING), force=True)
    logging.captureWarnings(True)
    _catch_the_uncaught()


def _catch_the_uncaught() -> None:
    """Log uncaught errors; printing them to stderr may raise or wait for ever."""

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            _fault("fault in a thread", args.exc_value, thread=getattr(args.thread, "name", ""))

    def in_finalizer(args: Any) -> None:
        _fault("fault in a finalizer", args.exc_value, of=args.object)

    def in_main(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        _fault("fault", error)
        flush()

    threading.excepthook = in_thread
    sys.unraisablehook = in_finalizer
    sys.excepthook = in_main


def _fault(event: str, error: BaseException | None, **more: Any) -> None:
    _take({"event": event, "level": "critical", "exc_info": error, **more})
