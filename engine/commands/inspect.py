"""``status`` and ``dead-letters``: from the spools, or from the daemon that holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from engine.app import Compacted, Engine
from engine.commands import FAILED, OK, complain, print_json
from engine.commands.forward import choose_sync
from engine.commands.preview import Preview
from engine.config import Admin, Settings
from engine.errors import DataDirInUse
from engine.metrics import Status, SyncStatus
from engine.spool.rows import DeadLetter, DeadLetterQuery


class Spools(Protocol):
    """What can be asked of spools, wherever they are held."""

    async def status(self) -> Status: ...
    async def dead_letters(self, sync: str, query: DeadLetterQuery) -> list[DeadLetter]: ...
    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]: ...
    async def discard(self, sync: str, query: DeadLetterQuery) -> int: ...
    async def compact(self, sync: str) -> Compacted: ...


@asynccontextmanager
async def open_spools(settings: Settings) -> AsyncIterator[Spools]:
    """Open the spools, or ask the daemon that has them, through its admin port.

    Raises:
        DataDirInUse: a daemon has them, and its admin port cannot be asked.
    """
    try:
        async with Engine(settings, deliver=False) as engine:
            yield engine
        return
    except DataDirInUse as error:
        if settings.admin is None:
            raise DataDirInUse(f"{error}, and there is no [admin] to ask it through") from None
    async with _Daemon(settings.admin) as daemon:
        yield daemon


class _Daemon:
    """A running daemon, through its admin port."""

    def __init__(self, admin: Admin) -> None:
        headers = {"Authorization": f"Bearer {admin.token.reveal()}"} if admin.token else {}
        self._address = admin.listen
        self._session = aiohttp.ClientSession(f"http://{admin.listen}", headers=headers)

    async def __aenter__(self) -> _Daemon:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def _ask(self, method: str, path: str, body: Any, kind: Any) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(method, path, data=data, headers=headers) as answer:
                content = await answer.read()
                if answer.status != 200:
                    raise DataDirInUse(f"the daemon at {self._address} answers: {content.decode()}")
        except aiohttp.ClientError as error:
            raise DataDirInUse(
                f"data_dir is in use, and admin.listen {self._address} does not answer: {error}"
            ) from None
        return msgspec.json.decode(content, type=kind)

    async def status(self) -> Status:
        status: Status = await self._ask("GET", "/api/status", None, Status)
        return status

    async def dead_letters(self, sync: str, query: DeadLetterQuery) -> list[DeadLetter]:
        letters: list[DeadLetter] = await self._ask(
            "POST", f"/api/{sync}/dead-letters/list", query, list[DeadLetter]
        )
        return letters

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]:
        return Counter(
            await self._ask("POST", f"/api/{sync}/dead-letters/replay", query, dict[str, int])
        )

    async def discard(self, sync: str, query: DeadLetterQuery) -> int:
        answer = await self._ask("POST", f"/api/{sync}/dead-letters/discard", query, dict[str, int])
        return int(answer["discarded"])

    async def compact(self, sync: str) -> Compacted:
        done: Compacted = await self._ask("POST", f"/api/{sync}/spool/compact", {}, Compacted)
        return done


async def status(settings: Settings, *, as_json: bool = False) -> int:
    """Print the accounting of all syncs."""
    async with open_spools(settings) as spools:
        found = await spools.status()
    if as_json:
        print_json(found)
        return OK
    table = Table("sync", "received", "delivered", "dropped", "dead", "pending", "Intercom")
    for sync in found.syncs:
        health = sync.intercom.health if sync.intercom else "not running"
        dropped = sum(sync.dropped.values())
        cells = (sync.received, sync.delivered, dropped, sync.dead, sync.pending, health)
        table.add_row(sync.name, *map(str, cells))
    Console().print(table)
    for sync in found.syncs:
        if sync.trouble:
            print(f"{sync.name}: trouble: {sync.trouble}")
        for what, counts in _details(sync):
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            print(f"{sync.name}: {what}: {told}")
    for refusal in found.refusals:
        print(f"http: refused at {refusal.door}: {refusal.count} {refusal.reason}")
    for key, count in found.refused_keys.items():
        print(f"http: no sync takes the API key {key}: {count} refused")
    return OK


def _details(sync: SyncStatus) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield what is behind the sums, where there is anything."""
    details = {
        "dropped": sync.dropped,
        "dead letters": sync.dead_by_reason,
        "users that wait": sync.parked_users,
        "changed on the way": sync.adjusted,
        "attributes that the workspace lacks": sync.unknown_attributes,
    }
    for what, counts in details.items():
        if counts:
            yield what, counts


def view(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter for JSON, its raw event as text."""
    fields = msgspec.structs.asdict(letter)
    return {**fields, "raw": letter.raw.decode(errors="replace")}


async def list_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Print dead letters, a line each."""
    letters = await _find(settings, choose_sync(settings, sync), query)
    if as_json:
        print_json([view(letter) for letter in letters])
        return OK
    table = Table("id", "reason", "status", "user", "attempts", "from", "message")
    for one in letters:
        place = f"{one.origin}:{one.line}" if one.line else one.origin
        table.add_row(
            str(one.id),
            one.reason,
            str(one.status),
            one.user_key,
            str(one.attempts),
            place,
            one.message[:80],
        )
    Console().print(table)
    return OK


async def show_letter(settings: Settings, sync: str | None, id_: int) -> int:
    """Print one dead letter, whole, as JSON."""
    letters = await _find(settings, choose_sync(settings, sync), DeadLetterQuery(ids=[id_]))
    if not letters:
        return complain(f"there is no dead letter {id_}", FAILED)
    print_json(view(letters[0]))
    return OK


async def replay_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, dry_run: bool
) -> int:
    """Queue dead letters again; with ``dry_run`` print what would be sent for each today."""
    name = choose_sync(settings, sync)
    if dry_run:
        preview = Preview(next(s for s in settings.sync if s.name == name))
        for letter in await _find(settings, name, query):
            print_json({"id": letter.id, **preview.of(letter.raw)})
        return OK
    async with open_spools(settings) as spools:
        print_json(await spools.replay(name, query))
    return OK


async def discard_letters(settings: Settings, sync: str | None, query: DeadLetterQuery) -> int:
    """Settle dead letters as dropped."""
    async with open_spools(settings) as spools:
        print_json({"discarded": await spools.discard(choose_sync(settings, sync), query)})
    return OK


async def _find(settings: Settings, sync: str, query: DeadLetterQuery) -> list[DeadLetter]:
    async with open_spools(settings) as spools:
        return await spools.dead_letters(sync, query)
