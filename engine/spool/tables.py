"""The tables of a spool on one connection, with what they count in memory until a commit."""

from __future__ import annotations

from amplitude_intercom.engine.spool.accounts import (
    CONTACTS,
    DEAD,
    INSERT_IDS,
    PARKED,
    SPOOL,
    Accounts,
)
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.directory import ContactDirectory
from amplitude_intercom.engine.spool.inbox import Inbox
from amplitude_intercom.engine.spool.insert_ids import InsertIds
from amplitude_intercom.engine.spool.jobs import Jobs
from amplitude_intercom.engine.spool.meta import (
    Checkpoints,
    EventNamesTable,
    Meta,
    WorkspaceNumbers,
)
from amplitude_intercom.engine.spool.records import Records
from amplitude_intercom.engine.spool.relayed import RelayedRequests
from amplitude_intercom.engine.spool.settled_lines import SettledLines
from amplitude_intercom.engine.spool.takers import Takers
from amplitude_intercom.engine.spool.users import WaitingUsers


class Tables:
    """One object for each table; all of them share the connection, and so its transaction."""

    def __init__(self, db: Connection, window_ms: int) -> None:
        """``window_ms``: how long an insert id is known."""
        self.db = db
        self.takers = Takers(db)
        self.inbox = Inbox(db)
        self.records = Records(db)
        self.users = WaitingUsers(db)
        self.letters = DeadLetters(db)
        self.insert_ids = InsertIds(db, window_ms)
        self.contacts = ContactDirectory(db)
        self.event_names = EventNamesTable(db)
        self.workspaces = WorkspaceNumbers(db)
        self.checkpoints = Checkpoints(db)
        self.jobs = Jobs(db)
        self.meta = Meta(db)
        self.relayed = RelayedRequests(db)
        self.accounts = Accounts(db)
        self.lines = SettledLines()

    def count_sizes(self) -> None:
        """Count rows and bytes that were added in this transaction."""
        for taker, by in self.letters.bytes_added.items():
            self.accounts.add(taker, DEAD, by)
        for (taker, reason), by in self.users.parked_added.items():
            self.accounts.add(taker, f"{PARKED}{reason}", by)
        self.accounts.add(SPOOL, INSERT_IDS, self.insert_ids.added)
        self.accounts.add(SPOOL, CONTACTS, self.contacts.added)
        self.forget_sizes()

    def forget_sizes(self) -> None:
        """Drop the sizes that were not counted yet, after a rollback or once they are counted."""
        self.letters.bytes_added.clear()
        self.users.parked_added.clear()
        self.insert_ids.added = self.contacts.added = 0

    def oldest_packed_ms(self) -> int | None:
        """Return when the first packed batch of any taker was accepted; None: there is none."""
        found = [
            first[1]
            for taker in self.takers.all()
            if (first := self.inbox.first_packed(taker.id, taker.unpacked_to))
        ]
        return min(found, default=None)

    def dead_bytes(self) -> int:
        """Return the bytes of the dead letters of all takers."""
        return sum(self.accounts.value(taker, DEAD) for taker in self.accounts.takers())
