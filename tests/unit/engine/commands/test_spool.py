"""What ``spool status`` says of the tables in a spool's file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from amplitude_intercom.engine.commands.spool import TABLES, _rows
from amplitude_intercom.engine.spool.sqlite import examine
from support.spools import opened

DAY_MS = 86_400_000
NOW_MS = 20_000 * DAY_MS + 5


def state(folder: Path) -> examine.SpoolState:
    path = folder / "spool.db"
    opened(path).close()
    return examine.state_of(path)


def test_every_table_is_said_in_words(tmp_path: Path) -> None:
    found = state(tmp_path)
    assert set(found.rows) == set(TABLES)
    remarks = {what: remark for what, _, remark in _rows(found, NOW_MS)}
    assert remarks["checkpoints"] == "0 rows: how far sources that can be read again have come"


def test_a_day_that_is_not_over_is_no_age(tmp_path: Path) -> None:
    times = {"contacts": NOW_MS - 5 + DAY_MS, "records": NOW_MS - 60_000}
    found = msgspec.structs.replace(state(tmp_path), oldest_ms=times)
    remarks = {what: remark for what, _, remark in _rows(found, NOW_MS)}
    assert remarks["contacts"] == "0 rows: what is known of contacts"
    assert remarks["records"] == "0 rows, the oldest 60 s: events that wait or are under way"
