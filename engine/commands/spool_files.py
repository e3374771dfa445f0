"""The spool's files as commands read them where no daemon can be asked: without lock or change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from amplitude_intercom.engine.clients import address_of
from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.letter_values import (
    Letter,
    LetterPage,
    LetterQuery,
    read_letter,
    read_page,
)
from amplitude_intercom.engine.console.api_v1.pages import position_of
from amplitude_intercom.engine.console.problems import Problem
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.sqlite.snapshots import disk_bytes, disk_free_bytes, look
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME
from amplitude_intercom.engine.spool.store import Store, reading_store, wall_clock_ms
from amplitude_intercom.engine.spool.user_state import UserState, nothing_of, state_of_user
from amplitude_intercom.engine.status import RelayStatus, SpoolStatus, Status, SyncStatus
from amplitude_intercom.engine.status_reading import (
    SyncFacts,
    TakerFacts,
    read_relay_facts,
    read_shared_facts,
    read_sync_facts,
    relay_status,
    spool_status,
    sync_status,
)
from amplitude_intercom.engine.token_facts import contact_key, workspace_of
from amplitude_intercom.transports.reasons import RefusalReason

T = TypeVar("T")

PAGE: Final = 1_000
"""Dead letters that are read at once."""


class SpoolFiles:
    """The spool's files, read as they are, beside a process that may write them."""

    def __init__(self, settings: Settings, why: str = "", holder: int | None = None) -> None:
        """``why`` no daemon is asked; ``holder``: the process that has the files, if any."""
        self._settings = settings
        self.why = why
        self.holder = holder

    @property
    def path(self) -> Path:
        """The path of the spool's file, which may not exist yet."""
        return Path(self._settings.data_dir) / FILE_NAME

    def look(self, work: Callable[[Store], T], without: T) -> T:
        """Read the spool in one transaction; return ``without`` where there is no spool yet.

        Raises:
            SpoolError: it exists and cannot be read.
        """
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return without
        except OSError as error:
            text = f"{self.path}: {error.strerror}"
            raise SpoolError(RefusalReason.SPOOL_FAILING, text) from None
        return look(self.path, reading_store, work)

    async def status(self) -> Status:
        state = "offline" if self.holder is None else "unreachable"
        syncs, spool = self._read_status()
        relays = self._read_relays(spool.trouble)
        return Status(state, self._settings.data_path, syncs, spool, relays=relays)

    def _read_relays(self, trouble: str) -> list[RelayStatus]:
        def work(store: Store) -> dict[str, tuple[Counter[str], TakerFacts]]:
            takers = {r.taker: store.takers.known_id(r.taker) for r in self._settings.relay}
            shared = read_shared_facts(store, wall_clock_ms())
            return {
                name: (store.accounts.committed(taker), read_relay_facts(store, taker, shared))
                for name, taker in takers.items()
            }

        read: dict[str, tuple[Counter[str], TakerFacts]] = {}
        if not trouble and self._settings.relay:
            read = self.look(work, read)
        statuses = []
        for relay in self._settings.relay:
            counters, facts = read.get(relay.taker, (Counter[str](), TakerFacts()))
            address, now_ms = address_of(relay), wall_clock_ms()
            found = relay_status(relay, counters, facts, address=address, now_ms=now_ms)
            statuses.append(msgspec.structs.replace(found, trouble=trouble))
        return statuses

    def _read_status(self) -> tuple[list[SyncStatus], SpoolStatus]:
        names = [sync.name for sync in self._settings.sync]
        names += [relay.taker for relay in self._settings.relay]

        def work(store: Store) -> tuple[dict[str, tuple[Counter[str], SyncFacts]], SpoolStatus]:
            found, shared = {}, read_shared_facts(store, wall_clock_ms())
            for sync in self._settings.sync:
                taker = store.takers.known_id(sync.name)
                facts = read_sync_facts(store, taker, workspace_of(store, sync), shared)
                found[sync.name] = (store.accounts.committed(taker), facts)
            max_bytes = self._settings.spool.max_bytes
            status = spool_status(store, names, max_bytes, wall_clock_ms())
            return found, msgspec.structs.replace(
                status,
                disk_bytes=disk_bytes(self.path),
                used_bytes=Spool.used_bytes(store),
                disk_free_bytes=disk_free_bytes(self.path),
            )

        trouble: SpoolError | None = None
        read: dict[str, tuple[Counter[str], SyncFacts]] = {}
        spool = SpoolStatus(disk_bytes(self.path))
        try:
            read, spool = self.look(work, (read, spool))
        except SpoolError as error:
            trouble = error
            spool = SpoolStatus(disk_bytes(self.path), trouble=str(error))
        syncs = []
        for sync in self._settings.sync:
            counters, facts = read.get(sync.name, (Counter[str](), SyncFacts()))
            syncs.append(
                sync_status(sync, counters, facts, now_ms=wall_clock_ms(), trouble=trouble)
            )
        return syncs, spool

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, cursor: str, limit: int
    ) -> LetterPage:
        """Return a page of dead letters, as the API does.

        Raises:
            SpoolError: the spool exists and cannot be read.
            SettingsError: the cursor is none of this list.
        """
        conditions = {
            name: value
            for name, value in msgspec.structs.asdict(query).items()
            if name in LetterQuery.__struct_fields__
        }
        asked = LetterQuery(**conditions, cursor=cursor, limit=limit)
        path = f"{API_ROOT}/syncs/{sync}/dead-letters"

        def work(store: Store) -> LetterPage:
            return read_page(
                store, sync, path, asked, lambda count: count(store), hides_values=False
            )

        try:
            position_of(asked.list_name(path), cursor, Position.read)  # wrong without a spool, too
        except Problem as problem:
            raise SettingsError(f"--after {cursor}: {problem.errors[0].detail}") from None
        return self.look(work, LetterPage([], None, 0, 0))

    async def dead_letter(self, sync: str, id_: int) -> Letter | None:
        """Return one dead letter; None: there is none of this id."""
        return self.look(lambda store: read_letter(store, sync, id_, hides_values=False), None)

    def whole_letters(
        self, sync: str, query: DeadLetterQuery, after: Position
    ) -> tuple[list[DeadLetter], Position | None]:
        """Return dead letters with their events, and the position of the next page, if any."""
        nothing: tuple[list[DeadLetter], Position | None] = ([], None)
        return self.look(
            lambda store: store.letters.page(store.takers.known_id(sync), query, after, PAGE),
            nothing,
        )

    async def user(self, sync: str, user: str) -> UserState:
        of_sync = next(found for found in self._settings.sync if found.name == sync)

        def work(store: Store) -> UserState:
            contact = contact_key(store, of_sync, user)
            return state_of_user(store, store.takers.known_id(sync), user, contact)

        return self.look(work, nothing_of(user))
