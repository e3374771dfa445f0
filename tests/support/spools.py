"""Spools taken apart: a store of a test's own in the hands of a real database."""

from __future__ import annotations

from pathlib import Path

from amplitude_intercom.engine.spool.database import Database
from amplitude_intercom.engine.spool.reserve import Reserve
from amplitude_intercom.engine.spool.store import Store


def database_of(store: Store) -> Database:
    """A database that has this store, keeps no reserve, and opens the same again."""
    return Database(lambda *, recover: store, Reserve(Path("unused"), 0))
