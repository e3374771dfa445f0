"""The source actor: takes batches from a transport and gives them to the syncs they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.settings import ANY_KEY
from amplitude_intercom.transports.contract import Batch, Receipt, Ticket
from amplitude_intercom.transports.errors import Refused, UnknownApiKey, UnknownSync
from amplitude_intercom.transports.reasons import RefusalReason


class Tally:
    """One ticket, for as many syncs as take the batch: done when the last of them is."""

    def __init__(self, ticket: Ticket, shares: int) -> None:
        self._ticket = ticket
        self._shares = shares
        self._sum = Receipt(0, 0, 0, 0)

    def acknowledge(self, receipt: Receipt) -> None:
        """Add what one sync stored."""
        mine, theirs = msgspec.structs.astuple(self._sum), msgspec.structs.astuple(receipt)
        self._sum = Receipt(*map(sum, zip(mine, theirs, strict=True)))
        self._shares -= 1
        if self._shares == 0:
            self._ticket.acknowledge(self._sum)

    def refuse(self, error: BaseException) -> None:
        """One sync could not store it: the sender has to send it again, to all of them."""
        self._ticket.refuse(error)


class Share(msgspec.Struct):
    """A batch on its way into one sync, with where to say that it has arrived."""

    batch: Batch
    tally: Tally


class SourceActor:
    """The engine's intake, as its sources see it (``transports.Intake``)."""

    def __init__(
        self,
        outboxes: Mapping[str, MemoryObjectSendStream[Share]],
        syncs_by_key: Mapping[str, Sequence[str]],
        stopped: Callable[[str], str],
    ) -> None:
        """``stopped`` returns the fault that keeps a sync from taking events in, or nothing."""
        self._outboxes = outboxes
        self._syncs_by_key = syncs_by_key
        self._stopped = stopped
        self._draining = False

    def drain(self) -> None:
        """Refuse everything from now on."""
        self._draining = True

    def close(self) -> None:
        """End the syncs' inboxes: what was sent before is still worked through."""
        self.drain()
        for outbox in self._outboxes.values():
            outbox.close()

    async def send(self, batch: Batch) -> Ticket:
        """Queue a batch for each sync that takes it; waits while one of them is full.

        Raises:
            Refused: the engine is draining, or a fault has stopped the intake of one of them.
            UnknownApiKey: no sync takes this key's events.
            UnknownSync: the batch is for a sync that is not there.
        """
        if self._draining:
            raise Refused(RefusalReason.DRAINING)
        names = self._takers(batch)
        for name in names:
            if fault := self._stopped(name):
                raise Refused(RefusalReason.INTERNAL, fault)
        ticket = Ticket()
        tally = Tally(ticket, len(names))
        for name in names:
            share = Share(batch, tally)
            try:
                self._outboxes[name].send_nowait(share)
            except anyio.WouldBlock:
                await self._wait_to_send(name, share)
        return ticket

    async def _wait_to_send(self, name: str, share: Share) -> None:
        """Send to a full channel; who waits when the engine begins to drain is refused."""
        try:
            await self._outboxes[name].send(share)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise Refused(RefusalReason.DRAINING) from None

    def takes(self, api_key: str) -> bool:
        """Whether any sync takes this key's events."""
        return api_key in self._syncs_by_key or ANY_KEY in self._syncs_by_key

    def _takers(self, batch: Batch) -> list[str]:
        if batch.sync is not None:
            if batch.sync not in self._outboxes:
                known = ", ".join(self._outboxes)
                raise UnknownSync(f"there is no sync `{batch.sync}`; there is {known}")
            return [batch.sync]
        key = batch.api_key or ""
        names = [*self._syncs_by_key.get(key, ()), *self._syncs_by_key.get(ANY_KEY, ())]
        if not names:
            raise UnknownApiKey(key)
        return list(dict.fromkeys(names))
