"""One sync's side of delivery: its rules, its part of the spool, and its workspace."""

from __future__ import annotations

from collections.abc import Callable, Collection

from amplitude_intercom.engine.delivery.calls import CountedCalls
from amplitude_intercom.engine.delivery.contacts.scope import ContactScope
from amplitude_intercom.engine.delivery.contacts.selected_properties import (
    SelectedProperties,
    follow_selection,
)
from amplitude_intercom.engine.delivery.endings import Ending
from amplitude_intercom.engine.delivery.feed import Feed
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes, SyncBytes
from amplitude_intercom.engine.delivery.loading import Loading
from amplitude_intercom.engine.delivery.scheduler import Scheduler
from amplitude_intercom.engine.delivery.settlement import Settlement
from amplitude_intercom.engine.delivery.sync_figures import SyncFigures
from amplitude_intercom.engine.delivery.turn_ends import TurnEnds
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import Retries
from amplitude_intercom.engine.delivery.workspaces import Workspace
from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction


class Stream:
    """One sync, whether it is delivered or not."""

    def __init__(self, sync: Sync, spool: TakerSpool, figures: SyncFigures | None = None) -> None:
        """``figures``: those of the sync under its settings before, to be counted on."""
        self.figures = figures or SyncFigures()
        self.sync = sync
        self.spool = spool
        self.rules = SyncRules(sync)
        self.selection = SelectedProperties()
        """Of the properties that it brings to contacts; known once the daemon has started."""
        self.delivery: SyncDelivery | None = None
        """Its delivery; None where nothing is delivered (a sync that is disabled)."""

    @property
    def admission(self) -> Admission:
        """The rules by which its events are kept."""
        return self.rules.admission

    @property
    def selected(self) -> Collection[str]:
        """The properties whose operations are applied."""
        is_applied = self.sync.enabled and self.sync.users.enabled
        return self.rules.contacts.properties if is_applied else ()

    @property
    def found_by(self) -> str:
        """The identifier and the source by which its users are found, in one text."""
        return f"{self.sync.mapping.identifier} {self.sync.mapping.source}"

    @property
    def gate(self) -> Gate | None:
        """The gate of its access token, where it delivers."""
        return self.delivery.gate if self.delivery else None

    def tell_the_end(self) -> None:
        """Wake all that wait for progress of the delivery: there will be none."""
        if self.delivery is not None:
            self.delivery.feed.tell_the_end()

    def follow_selection(self, store: Transaction, now_ms: int) -> SelectedProperties:
        """Keep which properties the sync brings to contacts from now on; return them."""
        return follow_selection(store, self.spool.taker, self.selected, self.found_by, now_ms)


class SyncDelivery:
    """The parts that the turns of one sync need.

    ``workspace`` and ``contacts`` are there once the workspace is known.
    """

    workspace: Workspace
    contacts: ContactScope
    has_entered = False
    """Whether it is known which workspace it delivers to; until then no call is made for a turn."""

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
        self.selection = stream.selection
        self.gate = gate
        self.calls = CountedCalls(gate, spool.tally)
        self.scheduler = scheduler
        self.now_ms = now_ms
        self._figures = stream.figures
        self.loaded = loaded = SyncBytes(budget)
        loading = Loading(
            sync.name,
            spool.taker,
            scheduler,
            gate.health,
            loaded,
            read_ahead=sync.delivery.read_ahead,
            writes_contacts=sync.users.enabled,
            now_ms=now_ms,
        )
        retries = Retries(sync.delivery.retry_attempts, sync.delivery.retry_window_s, jitter)
        self.unknown_wait_s: Callable[[int], float] = lambda n: retries.unknown_wait_ms(n) / 1000
        """How long it is believed that a user is not there, after so many answers that said so."""
        many = (gate.max_in_flight + 1) // 2
        look_at_table = loading.look_at_table
        self.settlement = Settlement(
            spool,
            loaded,
            retries,
            many=many,
            now_ms=now_ms,
            look_at_table=look_at_table,
            latency=stream.figures.latency,
        )
        turn_ends = TurnEnds(
            spool, scheduler, loaded, retries, now_ms=now_ms, look_at_table=look_at_table
        )
        self.feed = Feed(
            spool, scheduler, loading, self.settlement, turn_ends, now_ms=now_ms, changed=changed
        )

    def enter(self, workspace: Workspace) -> None:
        """Deliver to a workspace from now on."""
        self.has_entered = True
        self.workspace = workspace
        self.spool.workspace = workspace.number
        self.contacts = ContactScope(
            self.spool,
            workspace,
            self.rules.contacts,
            self.selection,
            self.now_ms,
            self.sync.users,
            self._figures.unknown_attributes,
        )

    def leave(self) -> None:
        """Forget what is in memory: the sync is not delivered any more, and no turn is at work."""
        self.scheduler.forget(self.sync.name)
        self.loaded.let_all_go()
        self.spool.appended = lambda: None
        self.feed.tell_the_end()

    def end(self, turn: Turn, ending: Ending) -> None:
        """End a turn, and its probe of an endpoint, if it was one."""
        self._figures.retries += turn.is_retry
        self.gate.health.end_probes(turn.who)
        self.settlement.end(turn, ending)
