"""``spool status``, ``verify`` and ``compact``: the files themselves, whoever is using them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.spools import open_spools
from amplitude_intercom.engine.commands.terminal import count, duration, print_table, say, size
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool import examine
from amplitude_intercom.engine.spool.spool import wall_clock_ms


def _files(settings: Settings, sync: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the spools that are meant.

    Raises:
        SettingsError: there is no such sync.
    """
    names = [sync.name for sync in settings.sync]
    if sync is not None and sync not in names:
        raise SettingsError(f"--sync: there is no sync `{sync}`; there is {', '.join(names)}")
    for name in names if sync is None else [sync]:
        yield name, Path(settings.data_dir) / f"{name}.db"


def status(settings: Settings, sync: str | None, *, as_json: bool) -> int:
    """Print what the spools hold; null, and a line that says so, for one that is not there yet."""
    states = {
        name: examine.state_of(path) if path.exists() else None
        for name, path in _files(settings, sync)
    }
    if as_json:
        print_json(states)
        return OK
    for name, path in _files(settings, sync):
        state = states[name]
        if state is None:
            say(f"{name}: {NOT_YET.format(path)}")
            continue
        say(f"{name}: {state.path}")
        print_table([(f"  {what}", *more) for what, *more in _rows(state, wall_clock_ms())])
    return OK


NOT_YET = "there is no spool {} yet; the first start makes it"


def _rows(state: examine.SpoolState, now_ms: int) -> Iterator[tuple[str, str, str]]:
    """Yield what is known of a spool: a name, a size, and what there is to say about it."""
    yield "file", size(state.file_bytes), f"{size(state.free_bytes)} of it free"
    yield "log", size(state.log_bytes), "written first, folded into the file bit by bit"
    yield "reserve", size(state.reserve_bytes), "kept back for a full disk"
    yield "schema", str(state.schema_version), f"SQLite {state.sqlite}"
    tables = sorted(state.rows, key=lambda table: -state.table_bytes.get(table, 0))
    for table in tables:
        held = state.table_bytes.get(table)
        first_ms = state.oldest_ms.get(table)
        age = "" if first_ms is None else f", the oldest {duration((now_ms - first_ms) / 1000)}"
        holds = f": {TABLES[table]}" if table in TABLES else ""
        yield (
            table,
            "" if held is None else size(held),
            f"{count(state.rows[table], 'row')}{age}{holds}",
        )
    if state.last_trouble:
        yield "last trouble", "", state.last_trouble


TABLES = {
    "records": "events that wait",
    "dead_letters": "events that are not sent",
    "seen": "insert ids, for spool.dedupe_window_s",
    "seconds": "which event has which second of its user",
    "contacts": "what is known of contacts",
    "users_aside": "users that wait",
}
"""What is in a table, for people."""


def verify(settings: Settings, sync: str | None, *, as_json: bool) -> int:
    """Check every checksum and the accounting; 1 where something is damaged."""
    found: dict[str, list[examine.Damage]] = {}
    for name, path in _files(settings, sync):
        try:
            if path.exists():
                found[name] = examine.findings(path)
            else:  # before the first start there is nothing that could be damaged
                found[name] = []
                say(f"{name}: {NOT_YET.format(path)}", stderr=True)
        except SpoolError as error:
            found[name] = [examine.Damage("file", "", str(error))]
    if as_json:
        print_json(found)
    else:
        for name, findings in found.items():
            there = "whole" if (Path(settings.data_dir) / f"{name}.db").exists() else "not there"
            say(f"{name}: {'damaged' if findings else there}")
            for finding in findings:
                say(f"{name}: {finding.table} {finding.key}: {finding.problem}".replace(" :", ":"))
    return FAILED if any(found.values()) else OK


async def compact(settings: Settings, sync: str | None, *, as_json: bool) -> int:
    """Give what the files do not need back to the disk."""
    done = {}
    async with open_spools(settings) as spools:
        for name, _ in _files(settings, sync):
            try:
                done[name] = await spools.compact(name)
            except SpoolError as error:
                return complain(error, FAILED)
    if as_json:
        print_json(done)
        return OK
    for name, sizes in done.items():
        say(f"{name}: {sizes.before_bytes:,} bytes before, {sizes.after_bytes:,} now")
    return OK
