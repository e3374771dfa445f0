"""Where ``forward`` hands its batches to: an engine in this process, or a running daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from amplitude_intercom.engine.commands.terminal import count
from amplitude_intercom.engine.spool.accounts import under
from amplitude_intercom.transports.contract import Intake


class Deliverer(Protocol):
    """Takes the batches of one sync in, and delivers them.

    The properties say how it was at the last look.
    """

    @property
    def sync(self) -> str:
        """The name of the sync."""
        ...

    @property
    def intake(self) -> Intake:
        """Takes batches in."""
        ...

    @property
    def pending(self) -> int:
        """How many events of the sync wait."""
        ...

    @property
    def settled_so_far(self) -> int:
        """How many events of the sync are settled."""
        ...

    @property
    def health(self) -> str:
        """How Intercom fares for the sync."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing is taken in now; empty: it is."""
        ...

    @property
    def delivers(self) -> bool:
        """Whether the sync is delivered."""
        ...

    @property
    def kept_before(self) -> int:
        """How many events wait that nobody delivers but this run."""
        ...

    @property
    def goes_on(self) -> str:
        """What becomes of events that wait when this run ends."""
        ...

    async def look(self) -> None:
        """Look how it is now."""
        ...

    async def progress(self) -> None:
        """Wait until something is settled, or for a while; then look."""
        ...

    async def parked(self) -> int:
        """Return how many events wait with parked users."""
        ...

    async def checkpoints(self) -> dict[str, str]:
        """Return the checkpoints of sources, by source."""
        ...

    async def forget_checkpoints(
        self, sources: Sequence[str], kept: Mapping[str, str] | None = None
    ) -> None:
        """Forget the checkpoints of some sources; ``kept`` replaces those of others."""
        ...

    async def include_earlier(self) -> None:
        """Wait, once that is asked, for what an interrupted run before this one has handed too."""
        ...

    async def settled(self) -> None:
        """Wait until nothing is pending of what was handed."""
        ...

    async def why_waiting(self) -> list[str]:
        """Return lines that say what waits, and why."""
        ...

    async def end(self) -> dict[str, Any]:
        """End the run; return the counts of its report."""
        ...


def summary(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Return the change between two readings of a sync's counters, and the events that wait."""
    change = Counter(after)
    change.subtract(before)
    dead = {reason: n for reason, n in sorted(under(change, "dead:").items()) if n}
    return {
        "received": change["received"],
        "delivered": change["delivered"],
        "dropped": {reason: n for reason, n in sorted(under(change, "dropped:").items()) if n},
        "dead": change["dead"],
        "dead_by_reason": dead,
        "pending": after.get("pending", 0),
    }


class GateHealth(Protocol):
    """How Intercom fares for a sync (``engine.status.GateStatus``)."""

    @property
    def health(self) -> str:
        """The state, in a word."""
        ...


class WaitingSync(Protocol):
    """A sync's accounting (``engine.status.SyncStatus``)."""

    @property
    def name(self) -> str:
        """The name."""
        ...

    @property
    def pending(self) -> int:
        """How many events wait."""
        ...

    @property
    def parked_users(self) -> Mapping[str, int]:
        """Parked users, by reason."""
        ...

    @property
    def intercom(self) -> GateHealth | None:
        """The gate of its access token."""
        ...


def waiting_line(sync: WaitingSync) -> str:
    """Return a line that says how much of a sync waits, and why."""
    why = ", ".join(f"{count(n, 'user')}: {word}" for word, n in sync.parked_users.items())
    health = sync.intercom.health if sync.intercom else "well"
    if health != "well":
        why = f"Intercom: {health}"
    return (
        f"{sync.name}: {sync.pending:,} waiting ({why or 'being delivered'});"
        " --max-wait ends this earlier, what waits is kept"
    )
