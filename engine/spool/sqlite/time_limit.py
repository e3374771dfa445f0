"""A limit of time for reads: SQLite stops a query that goes on for longer."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_STEPS: Final = 2_000
"""Of SQLite's machine, between two looks at the clock: some tens of microseconds."""


class ReadStopped(Exception):
    """A read took longer than it may."""


def stopped_after(
    most_s: float,
    db: object,
    read: Callable[[], T],
    now_s: Callable[[], float] = time.monotonic,
) -> T:
    """Read, for ``most_s`` seconds at most. A connection to another database has no limit here.

    Raises:
        ReadStopped: it took longer.
    """
    if not isinstance(db, sqlite3.Connection):
        return read()
    end_s = now_s() + most_s
    db.set_progress_handler(lambda: now_s() >= end_s, _STEPS)
    try:
        return read()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise ReadStopped from None
        raise
    finally:
        db.set_progress_handler(None, _STEPS)
