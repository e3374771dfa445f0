"""The spool on the event loop: what waits for the disk is awaited here."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.settings import Delivery, SpoolSettings
from amplitude_intercom.engine.spool.appends import Appends
from amplitude_intercom.engine.spool.claims import Claim, Given
from amplitude_intercom.engine.spool.database import Database, Job
from amplitude_intercom.engine.spool.feed import Feed
from amplitude_intercom.engine.spool.reading import look
from amplitude_intercom.engine.spool.reserve import Reserve
from amplitude_intercom.engine.spool.rows import Append, Appended, Contact
from amplitude_intercom.engine.spool.schema import connect, reason_of
from amplitude_intercom.engine.spool.store import Store, under
from amplitude_intercom.engine.spool.writer import InlineWriter, ThreadWriter, Writer
from amplitude_intercom.transports.reasons import RefusalReason

T = TypeVar("T")


def wall_clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


def open_database(path: Path, settings: SpoolSettings, delivery: Delivery) -> Database:
    """Open a spool's tables, creating the file where there is none.

    Raises:
        SpoolError: it cannot be opened.
    """

    def opener(*, recover: bool) -> Store:
        connection = connect(path)
        try:
            return Store(
                connection,
                max_bytes=settings.max_bytes,
                window_ms=int(settings.dedupe_window_s * 1000),
                twin_window_ms=int(delivery.twin_window_s * 1000),
                same_second_shift_s=delivery.same_second_shift_s,
                recover=recover,
            )
        except (sqlite3.Error, ValueError) as error:  # of what is damaged, anything can be read
            connection.close()
            raise SpoolError(reason_of(error), f"{path}: {error}") from error

    return Database(opener, Reserve(path, settings.reserve_bytes))


class Spool:
    """One sync's spool, open."""

    def __init__(
        self,
        path: Path,
        settings: SpoolSettings,
        delivery: Delivery,
        *,
        max_in_flight: int,
        now_ms: Callable[[], int] = wall_clock_ms,
        inline: bool = False,
    ) -> None:
        """Open the file; ``inline`` runs transactions in the caller's thread (virtual time).

        Raises:
            SpoolError: it cannot be opened.
        """
        self.path = path
        self._inline = inline
        self._database = open_database(path, settings, delivery)
        self._adjusted_before = Counter(under(self._database.store.counters, "adjusted:"))
        self._writer: Writer = (
            InlineWriter(self._database) if inline else ThreadWriter(self._database, path.stem)
        )
        self._now_ms = now_ms
        self._appends = Appends(self._writer, now_ms)
        self._uncounted = Append(0, [], [], Counter())
        self._new_feed = partial(
            Feed,
            self._writer,
            read_ahead=delivery.read_ahead,
            max_in_flight=max_in_flight,
            attempts=delivery.retry_attempts,
            window_s=delivery.retry_window_s,
            now_ms=now_ms,
        )
        self.feed = self._new_feed()

    async def close(self) -> None:
        """Finish what was submitted and close the file."""
        uncounted, adjusted = self._take_uncounted(), self.feed.take_adjusted()
        if uncounted.received or adjusted:

            def job(store: Store) -> None:
                store.count_only(uncounted)
                store.count_adjusted(adjusted)

            await self.do(job)
        await self._writer.close()

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when it is on disk.

        The future raises ``SpoolError`` when nothing of it is stored.
        """
        if self._uncounted.received:
            self._appends.count(self._take_uncounted())
        return self._appends.put(batch)

    def count_only(self, batch: Append) -> None:
        """Count a batch of which nothing is kept; written with the next batch that is.

        A crash before that forgets both sides of the sum.
        """
        kept = self._uncounted
        self._uncounted = Append(
            kept.received + batch.received,
            [],
            [],
            kept.dropped + batch.dropped,
            {**kept.checkpoints, **batch.checkpoints},
        )

    def _take_uncounted(self) -> Append:
        taken, self._uncounted = self._uncounted, Append(0, [], [], Counter())
        return taken

    async def do(self, job: Job[T]) -> T:
        """Run a job on the store; returns when what it did is durable.

        Raises:
            SpoolError: nothing of it was done.
        """
        return await self._writer.submit(job)

    async def begin_anew(self) -> None:
        """Let delivery begin as after a restart: from what is on disk.

        Raises:
            SpoolError: the disk fails.
        """
        await self.do(Store.recover)
        old, self.feed = self.feed, self._new_feed()
        self.feed.succeed(old)

    async def look(self, job: Job[T]) -> T:
        """Run a job that only reads, on a connection of its own: the writer is not held up.

        Raises:
            SpoolError: the file cannot be read.
        """
        if self._inline:
            return await self.do(job)
        return await asyncio.to_thread(look, self.path, job)

    @property
    def adjusted(self) -> Counter[str]:
        """What was changed on the way to Intercom, by reason, since the spool was made."""
        return self._adjusted_before + self.feed.adjusted

    @property
    def trouble(self) -> SpoolError | None:
        """Why nothing is taken in, or nothing can be done at all; None when all is well."""
        if self._database.trouble is None and self._database.store.full:
            return SpoolError(RefusalReason.SPOOL_FULL, "`spool.max_bytes` is reached")
        return self._database.trouble

    @property
    def damage(self) -> SpoolError | None:
        """What the database said when something in its file could not be read."""
        return self._database.damage

    @property
    def counters(self) -> Counter[str]:
        """Return the counters, those of batches that were only counted included."""
        total = Counter(self._database.store.counters)
        total["received"] += self._uncounted.received
        total.update({f"dropped:{reason}": n for reason, n in self._uncounted.dropped.items()})
        return total

    async def checkpoints(self) -> dict[str, str]:
        """Return how far the sources that can be read again have come."""
        return await self.do(lambda store: store.meta.checkpoints())

    async def forget_marks(self, names: Sequence[str]) -> None:
        """Let these sources be read from their beginning again."""
        uncounted = self._take_uncounted()  # which may hold the last of their checkpoints

        def job(store: Store) -> None:
            store.count_only(uncounted)
            store.meta.forget_marks(names)

        await self.do(job)

    async def event_names(self) -> dict[str, int]:
        """Return the event names that have been sent, with the day of the last time."""
        return await self.do(lambda store: store.meta.event_names())

    async def keep_event_names(self, last_days: Mapping[str, int]) -> None:
        """Keep these event names, and no others."""
        kept = dict(last_days)
        await self.feed.persist(lambda store: store.meta.keep_event_names(kept))

    async def claim_seconds(self, claims: Sequence[Claim]) -> list[Given]:
        """Give each event its second, its own or the next that no other has; for good."""
        now_ms = self._now_ms()
        return await self.feed.persist(lambda store: store.seconds.claim(claims, now_ms))

    async def compact(self) -> None:
        """Give all that the file does not need back to the disk, bit by bit.

        Raises:
            SpoolError: the disk fails.
        """
        while await self.do(lambda store: store.give_back()):
            pass

    # --- the directory of known contacts --------------------------------------------------

    async def contact(self, user: str) -> Contact | None:
        """Return what is known of a user's contact."""
        return await self.feed.persist(lambda store: store.contacts.get(user))

    async def lose_contact(self, user: str) -> None:
        """Keep what is known of a user, but not which contact it is: that one is gone."""
        known = await self.contact(user)
        if known is not None and known.contact_id:
            await self.remember(user, msgspec.structs.replace(known, contact_id="", written={}))

    async def remember(self, user: str, contact: Contact) -> None:
        """Keep what is known of a user's contact."""
        await self.feed.persist(
            lambda store: store.contacts.remember(user, contact, self._now_ms())
        )
