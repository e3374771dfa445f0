"""One sync's side of delivery: its rules, its part of the spool, what is known of its workspace."""

from __future__ import annotations

from collections.abc import Callable

from amplitude_intercom.engine.delivery.attributes import Attributes
from amplitude_intercom.engine.delivery.contacts import Contacts
from amplitude_intercom.engine.delivery.endings import Ending
from amplitude_intercom.engine.delivery.event_names import EventNames
from amplitude_intercom.engine.delivery.feed import Feed
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.loading import LoadedBytes, Loading
from amplitude_intercom.engine.delivery.scheduler import Scheduler
from amplitude_intercom.engine.delivery.settlement import Settlement
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import Retries
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.spool import TakerSpool


class Stream:
    """One sync, whether it is delivered or not."""

    def __init__(self, sync: Sync, spool: TakerSpool) -> None:
        self.sync = sync
        self.spool = spool
        self.rules = SyncRules(sync)
        self.delivery: Delivery | None = None
        """Its delivery; None where nothing is delivered (a sync that is disabled)."""

    @property
    def gate(self) -> Gate | None:
        """The gate of its access token, where it delivers."""
        return self.delivery.gate if self.delivery else None

    def stop(self) -> None:
        """Send nothing new; what is under way is finished."""
        if self.delivery is not None:
            self.delivery.feed.stop()


class Delivery:
    """What the turns of one sync need."""

    def __init__(
        self,
        stream: Stream,
        gate: Gate,
        scheduler: Scheduler,
        budget: LoadedBytes,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called when more users may have a turn than before."""
        sync, spool = stream.sync, stream.spool
        self.sync = sync
        self.spool = spool
        self.rules = stream.rules
        self.gate = gate
        self.scheduler = scheduler
        self.now_ms = now_ms
        self.names = EventNames(spool, now_ms)
        self.contacts = self._contacts()
        self.loading = Loading(
            sync.name,
            spool.taker,
            scheduler,
            gate.health,
            budget,
            read_ahead=sync.delivery.read_ahead,
            writes_contacts=sync.users.enabled,
            now_ms=now_ms,
        )
        retries = Retries(sync.delivery.retry_attempts, sync.delivery.retry_window_s, jitter)
        many = (gate.max_in_flight + 1) // 2
        self.settlement = Settlement(
            spool, scheduler, self.loading, retries, many=many, now_ms=now_ms
        )
        self.feed = Feed(
            spool, scheduler, self.loading, self.settlement, now_ms=now_ms, changed=changed
        )

    def _contacts(self) -> Contacts:
        users = self.sync.users
        attributes = Attributes(
            self.gate,
            create_missing=users.create_missing_attributes,
            refresh_s=users.refresh_attributes_s,
        )
        return Contacts(
            self.spool,
            self.rules.contacts,
            attributes=attributes,
            archived=users.archived,
            adjusted=self.spool.adjustments.count,
        )

    def end(self, turn: Turn, ending: Ending) -> None:
        """End a turn; one that was a probe has nobody else waiting for it any more."""
        self.gate.health.end_probes(turn.who)
        self.settlement.end(turn, ending)
