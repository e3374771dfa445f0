"""The accounting as values, as ``status`` prints them.

The admin port answers with these values as JSON; ``engine.metrics`` renders them for Prometheus.
"""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.delivery.judge import Trouble
from amplitude_intercom.engine.histograms import HistogramValue

RATE_MINUTES: Final = 10
"""Length of the window from which the present rate is estimated."""


class GateStatus(msgspec.Struct, frozen=True):
    """State of the gate of one access token.

    ``name`` is the host and the token's number there, in the order of the settings. ``limit`` is
    in calls per 10 seconds; ``guessed`` says that Intercom has not named it yet.
    """

    name: str
    health: str
    limit: float
    in_flight: int
    calls: dict[str, int]
    call_s: dict[str, float]
    guessed: bool = False
    troubles: list[Trouble] = []
    took: HistogramValue | None = None
    """Durations of answered calls, since the start."""
    pauses: int = 0
    """Pauses for which a 429 has asked, since the start."""
    remaining: int | None = None
    """Calls that Intercom last said are left in its window; None: it has said nothing."""


class TakerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Accounting of a sync or a relay: received = delivered + dropped + dead + pending."""

    name: str
    enabled: bool
    received: int
    delivered: int
    dropped: dict[str, int]
    dead: int
    pending: int
    dead_by_reason: dict[str, int]
    waiting_bytes: int
    """Bytes that count against ``spool.max_bytes``."""
    oldest_pending_s: float | None = None
    """Age of the oldest waiting event; for a sync without those of parked users."""
    last_delivery_s: float | None = None
    """Time since the last delivery."""
    received_per_s: float = 0.0
    delivered_per_s: float = 0.0
    """Rates of the last ten minutes."""
    trouble: str = ""
    """The spool's present error; empty when it has none."""
    stopped: str = ""
    """The internal fault that keeps the taker from running now; empty when it runs."""
    faults: int = 0
    """Internal faults since the start."""


class SyncStatus(TakerStatus, frozen=True, kw_only=True):
    """Accounting of one sync, with the state of its users and of its gate."""

    parked_users: dict[str, int]
    oldest_parked_s: float | None
    """Time since the first failure of the user that is parked the longest."""
    adjusted: dict[str, int]
    unknown_attributes: dict[str, int]
    event_names: int
    latency_s: dict[str, float]
    intercom: GateStatus | None
    deliveries: HistogramValue | None = None
    """Times from accepted to answered, since the start."""
    retries: int = 0
    """Turns of users that were parked, since the start."""
    rekeying: int = 0
    """Id of the job that gives waiting records new keys and holds delivery; 0: no such job."""


class RelayStatus(TakerStatus, frozen=True, kw_only=True):
    """Accounting of one relay, in events, with the state of its requests.

    ``health`` is empty where the relay does not run in this process. ``said`` is the last failure.
    """

    address: str
    health: str = ""
    said: str = ""
    held: int = 0
    calls: dict[str, int] = {}
    refused_keys: dict[str, str] = {}
    """API keys that Amplitude refuses now, with its answers."""


class HttpStatus(msgspec.Struct, frozen=True):
    """Requests of a server: ``requests`` by endpoint and status (``/batch 200``; 0: no answer).

    ``connections`` and ``held_bytes`` are those of now.
    """

    requests: dict[str, int]
    took: HistogramValue
    connections: int
    held_bytes: int


class SourceStatus(msgspec.Struct, frozen=True):
    """State of one source: the fault that has stopped it, or empty, and the number of faults."""

    name: str
    stopped: str
    faults: int
    http: HttpStatus | None = None
    """Its requests, where it is a server of HTTP."""


class RefusalCount(msgspec.Struct, frozen=True):
    """Number of requests that the HTTP source has refused at one door for one reason."""

    door: str
    reason: str
    count: int


class LeftSync(msgspec.Struct, frozen=True):
    """Contents of the spool that belong to a taker missing from the settings."""

    pending: int
    dead: int


class SpoolStatus(msgspec.Struct, frozen=True):
    """Size of the spool: ``disk_bytes`` with log and reserve, ``used_bytes`` without free pages.

    ``trouble`` is its present error, empty when it has none. ``left`` holds takers that are in the
    spool and not in the settings, by name.
    """

    disk_bytes: int = 0
    used_bytes: int = 0
    waiting_bytes: int = 0
    trouble: str = ""
    left: dict[str, LeftSync] = {}
    full_in_s: float | None = None
    """Time until ``spool.max_bytes`` is reached at the present rate; None: it does not grow."""
    max_bytes: int = 0
    """The bound of ``waiting_bytes``."""
    growth_bytes_per_s: float = 0.0
    """Growth of ``waiting_bytes`` in the last ten minutes; below 0 where it shrinks."""
    disk_free_bytes: int | None = None
    rows: dict[str, int] = {}
    """Rows by kind, of all syncs and relays, as kept counters have them."""
    commits: HistogramValue | None = None
    """How long commits took; None where the spool is not open in this process."""

    @property
    def exists(self) -> bool:
        """Whether the spool's file has been created."""
        return self.disk_bytes > 0


class LoopStatus(msgspec.Struct, frozen=True):
    """Lags of the event loop, while which no request is answered and no call leaves.

    ``longest_s``: that of the last minute or two.
    """

    lag: HistogramValue
    longest_s: float


class Status(msgspec.Struct, frozen=True):
    """The answer of ``status`` and of the admin port. ``data_dir`` is an absolute path."""

    state: str
    data_dir: str
    syncs: list[SyncStatus]
    spool: SpoolStatus = SpoolStatus()
    refusals: list[RefusalCount] = []
    refused_keys: dict[str, int] = {}
    """Number of requests with an API key that no sync takes, by key."""
    sources: list[SourceStatus] = []
    relays: list[RelayStatus] = []
    loop: LoopStatus | None = None
    """None: no daemon runs."""


class Compacted(msgspec.Struct, frozen=True):
    """The size of the spool's file before and after it was compacted."""

    before_bytes: int
    after_bytes: int
