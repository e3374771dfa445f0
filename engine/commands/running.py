"""A command as a process: its settings, exit code, signals, and one line for an error."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import msgspec

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.commands.terminal import json_shown
from amplitude_intercom.engine.config import Written, load_written
from amplitude_intercom.engine.errors import DataDirInUse, EngineError, SettingsError
from amplitude_intercom.engine.log_lines import MAX_LINE_BYTES, cut, printable
from amplitude_intercom.transports.errors import BadFile

OK, FAILED, USAGE, DEAD_LETTERED, IN_USE = 0, 1, 2, 3, 4
"""Exit codes: settled; failure; wrong usage or settings; a dead letter and ``--strict``; another
process has the data directory."""

OF_SIGNAL = 128
"""What shells add to a signal's number to show it as an exit code."""

INTERRUPTED, READER_GONE = OF_SIGNAL + signal.SIGINT, OF_SIGNAL + signal.SIGPIPE


def load_settings(path: Path) -> Written:
    """Read settings and set logging up by them."""
    written = load_written(path)
    logs.configure(written.settings.log)
    return written


def collect_garbage_rarely() -> None:
    """Look for cycles every 50,000 objects, not every 700: the search walks through a lot.

    Hardly any object here is in a cycle: it is freed with its last reference.
    """
    gc.set_threshold(50_000, 20, 100)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command; return its exit code, after one line on stderr about an error."""
    collect_garbage_rarely()
    signal.signal(signal.SIGINT, _interrupt)
    return run_plainly(lambda: asyncio.run(main()))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the command at Ctrl-C, also while it reads: asyncio's own handler waits for the loop."""
    raise KeyboardInterrupt


def run_plainly(main: Callable[[], int]) -> int:
    """As ``run``, for a command that waits for nothing."""
    with logs.stderr_taken():
        try:
            code = main()
            sys.stdout.flush()
        except BaseException as error:
            known = next(filter(None, map(_code_of, _leaves(error))), None)
            if known is None:
                raise
            return known
    return code


def _code_of(error: BaseException) -> int | None:
    """Print an error; return the exit code, or None for a fault of this program."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and not error.filename:
        return READER_GONE  # of stdout, as in `preview | head`
    if isinstance(error, SettingsError):
        return complain(error, USAGE)
    if isinstance(error, DataDirInUse):
        return complain(error, IN_USE)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return complain(f"{error.filename}: {error.strerror}", FAILED)
    return complain(error, FAILED) if isinstance(error, EngineError | OSError | BadFile) else None


def complain(error: BaseException | str, code: int) -> int:
    """Print an error to stderr; return the exit code."""
    text = printable(cut(f"error: {error}", MAX_LINE_BYTES), lines=True)
    print(text, file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """Print a value to stdout, as one line of JSON."""
    text = msgspec.json.encode(value).decode()
    sys.stdout.write(json_shown(text, sys.stdout.encoding) + "\n")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


class Signals:
    """SIGTERM, SIGINT and SIGHUP: the first asks to stop, the second to stop now."""

    def __init__(
        self,
        hung_up: Callable[[], None] | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """``hung_up`` is called at SIGHUP instead; under `nohup` nothing is. ``told`` is called
        after each signal to stop."""
        self._told = told
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        self.first = 0
        """Which was the first; 0: none yet."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, hung_up or self._received)

    def _received(self, number: int = signal.SIGHUP) -> None:
        self.first = self.first or number
        (self.now if self.stop.is_set() else self.stop).set()
        self._told()
