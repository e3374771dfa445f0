"""The contract of a source: its duties, and the values that pass between it and the engine.

Rules
=====
A source is one class with one method: ``await source.run(intake)`` brings events in, until it ends
by itself (a file) or is cancelled (a server). It owes the engine five things:

1. It hands over **batches**, each event once, in the order in which they came:
   ``ticket = await intake.send(batch)``. ``send`` waits while the engine is full.
2. It confirms events to its own side only after ``receipt = await ticket.wait()`` has returned:
   from then on they are on disk. A source that ends by itself may confirm by ending.
3. When either raises ``Refused``, nothing of the batch is stored. The source says "later" to its
   own side, or sends the same batch again; ``draining`` is for good. ``UnknownApiKey`` and
   ``UnknownSync`` are final for a batch.
4. Cancelled, it ends, sends no more, and has confirmed nothing that is not on disk.
5. When ``run`` has returned, none of its tasks is left.

``transports.conformance`` has a check for each. A source is registered as an entry point of the
group ``amplitude_intercom.sources``; the table ``[sources.NAME]`` of the settings holds the
arguments of its class. One that listens somewhere has ``async listening()`` as well, which returns
the address once it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from amplitude_intercom.transports.amplitude import BadEvent, Head


class Original(msgspec.Struct, frozen=True):
    """A request as it came: ``path`` without its query, ``body`` inflated.

    ``peer``: the address of the client.
    """

    method: str
    path: str
    query: str
    content_type: str
    body: bytes
    peer: str = ""

    @property
    def target(self) -> str:
        """The path with its query."""
        return f"{self.path}?{self.query}" if self.query else self.path


class Batch(msgspec.Struct):
    """Events in order of arrival. ``heads[i]`` is the decoded head of ``raws[i]``.

    A source that has not decoded the heads leaves them out, and the engine does it.
    """

    heads: Sequence[Head | BadEvent] | None
    raws: Sequence[bytes]
    api_key: str | None = None
    """The events' Amplitude key, or None where the source is bound to ``sync``."""
    sync: str | None = None
    derive_ids: bool = False
    """Derive an insert id from the content of an event that has none: files and pipes may be read
    twice, and Amplitude's webhook tries again."""
    origin: str = ""
    """The events' origin, for dead letters: ``export.zip:hour.json.gz``, ``http /batch``."""
    lines: Sequence[int] | None = None
    """Line numbers, one per event, where the source has them."""
    checkpoints: Mapping[str, str] = {}
    """Positions by name, for a source that can be read again: everything before them is on disk.
    They are kept with the batch, in one commit, for the source's next start."""
    original: Original | None = None
    """The whole request of these events, where relays may have it."""
    checked: bool = False
    """The source has checked the heads (``check_head`` and ``check_time``) and found them good."""


def batch_of(
    raws: Sequence[bytes],
    *,
    api_key: str | None = None,
    sync: str | None = None,
    derive_ids: bool = False,
    origin: str = "",
) -> Batch:
    """Return a batch of events as they came, in any of Amplitude's dialects.

    ``api_key`` or ``sync`` selects the takers. An element that is no event becomes a dead letter.
    """
    return Batch(None, raws, api_key, sync, derive_ids, origin)


class Receipt(msgspec.Struct, frozen=True):
    """Counts of a batch that is now on disk, summed over the syncs that took it.

    Duplicates among the accepted events are found later, on their way to Intercom. ``dropped`` and
    ``dead`` are the sums of their reasons.
    """

    accepted: int
    dropped: int
    dead: int
    dropped_by_reason: Mapping[str, int] = {}
    dead_by_reason: Mapping[str, int] = {}


class Ticket:
    """The acknowledgement of one batch, to come."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Receipt:
        """Return the receipt once the batch is on disk.

        Raises:
            Refused: nothing of it is stored.
        """
        return await asyncio.shield(self._future)

    @property
    def settled(self) -> bool:
        """Whether ``wait`` would return, or raise, at once."""
        return self._future.done()

    def acknowledge(self, receipt: Receipt) -> None:
        """Resolve the ticket; a ticket that is settled already stays as it is."""
        if not self._future.done():
            self._future.set_result(receipt)

    def refuse(self, error: BaseException) -> None:
        """Fail the ticket; a ticket that is settled already stays as it is."""
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # else asyncio warns where no source waits


class Intake(Protocol):
    """The engine, as a source sees it."""

    async def send(self, batch: Batch) -> Ticket:
        """Queue a batch behind those sent before.

        Raises:
            Refused: the engine takes nothing now.
            UnknownApiKey: no sync takes this key's events.
            UnknownSync: the batch is for a sync that is not there.
        """
        ...

    def takes(self, api_key: str) -> bool:
        """Whether any sync or relay takes this key's events: cheap, from any thread.

        A source need not decode events that would be refused anyway.
        """
        ...


class Source(Protocol):
    """A transport that brings events in."""

    async def run(self, intake: Intake) -> None:
        """Bring events until the end of input; cancelling ends it too."""
        ...
