"""What the commands do, one module each; ``engine.cli`` only parses their arguments."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from engine import config
from engine.commands.terminal import json_shown, shown
from engine.config import Log, Settings
from engine.errors import DataDirInUse, EngineError, SettingsError

MOST_OF_AN_ERROR = 4_000
OK, FAILED, USAGE, DEAD_LETTERED = 0, 1, 2, 3
"""Exit codes: settled; failure; wrong usage or settings; a dead letter and ``--strict``."""


def load_settings(path: Path) -> Settings:
    """Read settings and set logging up by them."""
    settings = config.load(path)
    configure_logging(settings.log)
    return settings


def configure_logging(log: Log) -> None:
    """Send messages to stderr: for people on a terminal, as JSON lines otherwise.

    Those of libraries too, which come through the standard library's ``logging``.
    """
    human = log.format == "human" or (log.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if human
        else structlog.processors.JSONRenderer()
    )
    level = logging.getLevelNamesMapping()[log.level.upper()]
    stamp: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, renderer]
    structlog.configure(
        processors=[*stamp, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamp,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def collect_garbage_rarely() -> None:
    """Look for cycles every 50,000 objects, not every 700: with many lanes there is a lot to walk.

    Hardly anything here is in a cycle: what is done with is freed at once.
    """
    gc.set_threshold(50_000, 20, 100)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command; return its exit code, with one line on stderr for what went wrong."""
    collect_garbage_rarely()
    return run_plainly(lambda: asyncio.run(main()))


def run_plainly(main: Callable[[], int]) -> int:
    """As ``run``, for a command that waits for nothing."""
    try:
        return main()
    except BaseException as error:
        for wrong in _leaves(error):
            if isinstance(wrong, SettingsError | DataDirInUse):
                return complain(wrong, USAGE)
            if isinstance(wrong, OSError) and wrong.filename and wrong.strerror:
                return complain(f"{wrong.filename}: {wrong.strerror}", FAILED)
            if isinstance(wrong, EngineError | OSError):
                return complain(wrong, FAILED)
        if isinstance(error, KeyboardInterrupt):
            return FAILED
        raise


def complain(error: BaseException | str, code: int) -> int:
    """Say what is wrong on stderr; return the exit code."""
    print(f"error: {shown(error, MOST_OF_AN_ERROR)}", file=sys.stderr)
    return code


def print_json(value: Any) -> None:
    """Print a value to stdout, as one line of JSON."""
    sys.stdout.write(json_shown(msgspec.json.encode(value).decode()) + "\n")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


class Signals:
    """SIGTERM and SIGINT: the first asks to stop, the second to stop now."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.now if self.stop.is_set() else self.stop).set()
