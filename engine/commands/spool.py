"""``spool …``: the file itself, whoever is using it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.spool_access import open_spools
from amplitude_intercom.engine.commands.terminal import count, print_table, say, size
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.sqlite import backup as copy_of
from amplitude_intercom.engine.spool.sqlite import examine
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME
from amplitude_intercom.engine.spool.store import wall_clock_ms
from amplitude_intercom.engine.wording import duration

NOT_YET = "there is no spool {} yet; the first start makes it"


def _path(settings: Settings) -> Path:
    return Path(settings.data_dir) / FILE_NAME


def status(settings: Settings, *, as_json: bool) -> int:
    """Print the contents of the spool; null, or a line that says so, where there is none yet."""
    path = _path(settings)
    state = examine.state_of(path) if path.exists() else None
    if as_json:
        print_json(state)
    elif state is None:
        say(NOT_YET.format(path))
    else:
        say(state.path)
        print_table([(f"  {what}", *more) for what, *more in _rows(state, wall_clock_ms())])
    return OK


def _rows(state: examine.SpoolState, now_ms: int) -> Iterator[tuple[str, str, str]]:
    """Yield the facts about a spool: a name, a size, a remark."""
    yield "file", size(state.file_bytes), f"{size(state.free_bytes)} of it free"
    yield "log", size(state.log_bytes), "written first, folded into the file bit by bit"
    yield "reserve", size(state.reserve_bytes), "kept back for a full disk"
    yield "schema", str(state.schema_version), f"SQLite {state.sqlite}"
    tables = sorted(state.rows, key=lambda table: -state.table_bytes.get(table, 0))
    for table in tables:
        held = state.table_bytes.get(table)
        first_ms = state.oldest_ms.get(table)
        is_known = first_ms is not None and first_ms <= now_ms  # of contacts: the end of a day
        age = f", the oldest {duration((now_ms - (first_ms or 0)) / 1000)}" if is_known else ""
        holds = f": {TABLES[table]}" if table in TABLES else ""
        yield (
            table,
            "" if held is None else size(held),
            f"{count(state.rows[table], 'row')}{age}{holds}",
        )
    if state.last_trouble:
        yield "last trouble", "", state.last_trouble


TABLES = {
    "inbox": "batches of events, as they were accepted",
    "records": "events that wait or are under way",
    "dead_letters": "events that are not sent",
    "insert_ids": "which were accepted before, for spool.dedupe_window_s",
    "created_at_claims": "which event has which second of its user",
    "contacts": "what is known of contacts",
    "users": "users that wait",
    "minutes": "counters by the minute",
    "counters": "what became of all events, by sync and relay",
    "checkpoints": "how far sources that can be read again have come",
    "dead_letter_groups": "dead letters of one kind, counted",
    "event_names": "names that were sent to a workspace",
    "jobs": "replays and discards, and records keyed anew",
    "relayed": "requests that wait for Amplitude",
    "takers": "syncs and relays, by name",
    "workspaces": "workspaces that access tokens belong to",
    "meta": "facts about the file, and keys of requests that are done once",
}
"""What is in a table, for people."""


def verify(settings: Settings, *, as_json: bool) -> int:
    """Check every checksum and the accounting; 1 where something is damaged."""
    path = _path(settings)
    try:
        found = examine.findings(path) if path.exists() else []
    except SpoolError as error:
        found = [examine.Damage("file", "", str(error))]
    if not path.exists():  # before the first start there is nothing that could be damaged
        say(NOT_YET.format(path), stderr=True)
    if as_json:
        print_json(found)
    else:
        say(f"{path}: {'damaged' if found else 'whole' if path.exists() else 'not there'}")
        for finding in found:
            say(f"{finding.table} {finding.key}: {finding.problem}".replace(" :", ":"))
    return FAILED if found else OK


async def compact(settings: Settings, *, as_json: bool) -> int:
    """Give the space that the file does not need back to the disk."""
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        try:
            sizes = await spools.compact()
        except SpoolError as error:
            return complain(error, FAILED)
    if as_json:
        print_json(sizes)
    else:
        say(f"{sizes.before_bytes:,} bytes before, {sizes.after_bytes:,} now")
    return OK


def backup(settings: Settings, target: Path, *, as_json: bool) -> int:
    """Write a checked copy of the spool, consistent as of one moment."""
    path = _path(settings)
    if not path.exists():
        return complain(NOT_YET.format(path), FAILED)
    try:
        size_bytes = copy_of.backup(path, target)
    except SpoolError as error:
        return complain(error, FAILED)
    if as_json:
        print_json({"path": str(target), "size_bytes": size_bytes})
    else:
        say(f"{target}: {size(size_bytes)}, checked; as {FILE_NAME} in a data_dir it is a spool")
    return OK


async def move(settings: Settings, old: str, new: str, *, as_json: bool) -> int:
    """Give the records of a sync that is gone from the settings to another."""
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        moved = await spools.move_left(old, new)
    if as_json:
        print_json(moved)
    else:
        say(f"{count(moved.records, 'record')} of {old} moved to {new}")
    return OK


async def drop(settings: Settings, old: str, *, as_json: bool) -> int:
    """Drop the records of a sync that is gone from the settings."""
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        dropped = await spools.drop_left(old)
    if as_json:
        print_json(dropped)
    else:
        say(f"{count(dropped.records, 'record')} of {old} dropped")
    return OK
