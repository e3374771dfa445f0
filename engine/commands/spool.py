"""``spool status``, ``verify`` and ``compact``: the files themselves, whoever is using them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.commands import FAILED, OK, complain, print_json
from engine.commands.inspect import open_spools
from engine.config import Settings
from engine.errors import SettingsError, SpoolError
from engine.spool import examine


def _files(settings: Settings, sync: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the spools that are meant.

    Raises:
        SettingsError: there is no such sync.
    """
    names = [one.name for one in settings.sync]
    if sync is not None and sync not in names:
        raise SettingsError(f"--sync: there is no sync `{sync}`; there is {', '.join(names)}")
    for name in names if sync is None else [sync]:
        yield name, Path(settings.data_dir) / f"{name}.db"


def status(settings: Settings, sync: str | None, *, as_json: bool) -> int:
    """Print what the spools hold."""
    states = {name: examine.state_of(path) for name, path in _files(settings, sync)}
    if as_json:
        print_json(states)
        return OK
    for name, state in states.items():
        table = Table(title=f"{name}: {state.path}", show_header=False, title_justify="left")
        rows: dict[str, Any] = {
            "file": f"{state.file_bytes:,} bytes, {state.free_bytes:,} of them free",
            "log": f"{state.log_bytes:,} bytes",
            "reserve": f"{state.reserve_bytes:,} bytes",
            "schema": f"{state.schema_version} (SQLite {state.sqlite})",
            **{table_name: f"{count:,} rows" for table_name, count in state.rows.items()},
        }
        if state.last_trouble:
            rows["last trouble"] = state.last_trouble
        for what, value in rows.items():
            table.add_row(what, value)
        Console().print(table)
    return OK


def verify(settings: Settings, sync: str | None, *, as_json: bool) -> int:
    """Check every checksum and the accounting; 1 where something is damaged."""
    found: dict[str, list[examine.Finding]] = {}
    for name, path in _files(settings, sync):
        try:
            found[name] = examine.findings(path)
        except SpoolError as error:
            found[name] = [examine.Finding("file", "", str(error))]
    if as_json:
        print_json(found)
    else:
        for name, findings in found.items():
            print(f"{name}: {'whole' if not findings else 'damaged'}")
            for one in findings:
                print(f"{name}: {one.table} {one.key}: {one.problem}".replace(" :", ":"))
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
        print(f"{name}: {sizes.before_bytes:,} bytes before, {sizes.after_bytes:,} now")
    return OK
