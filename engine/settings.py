"""The settings as values: one struct a table of the TOML file; a bound has its unit in its name.

``engine.config`` reads and checks them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec

from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.bounds import (
    MAX_BYTES,
    MAX_RATE,
    EventBytes,
    HeldBytes,
    LineBytes,
    Positive,
    PositiveNumber,
    PositiveSeconds,
    Seconds,
)

_ADDRESS = r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}\Z"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
_SOURCE = r"^(user_id|device_id|user\..+|event\..+)\Z"
_HEADER = r"\A[A-Za-z0-9-]{0,64}\Z"
_URL = r"^[hH][tT][tT][pP][sS]?://[^\s/?#@]+(/[^\s?#@]*)?\Z"
PATTERNS_IN_WORDS: Final = {
    _ADDRESS: "an address, `host:port` (an IPv6 host in brackets, without a scope)",
    _HEADER: "a header's name: up to 64 letters, digits and `-`",
    _NAME: "a name of up to 64 letters, digits, `-` and `_`",
    _SOURCE: "`user_id`, `device_id`, `user.PROPERTY` or `event.PROPERTY`",
    _URL: "an address, `http://…` or `https://…`, without a user, a password or a query",
}
"""What the patterns ask for, for messages."""

Address = Annotated[str, msgspec.Meta(pattern=_ADDRESS)]
Name = Annotated[str, msgspec.Meta(pattern=_NAME)]


class Secret:
    """A text that must not be seen; ``reveal()`` is the only way to it.

    ``source`` is how the settings spell it (``env:NAME``), for messages; ``***`` when spelled out.
    """

    __slots__ = ("_read", "_value", "source")

    def __init__(
        self, value: str, source: str = "***", read: Callable[[], str] | None = None
    ) -> None:
        """``read`` reads it again where it comes from; it raises ``ValueError``."""
        self._value = value
        self._read = read
        self.source = source

    def reveal(self) -> str:
        """Return the text itself, as it was when the settings were read."""
        return self._value

    def reveal_again(self) -> str:
        """Return the text as its file has it now; where that is none, as it was. Reads the file."""
        try:
            return self._read() if self._read is not None else self._value
        except ValueError:
            return self._value

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def short_key(key: str) -> str:
    """Return an API key as it is named to people."""
    return "* (any)" if key == ANY_KEY else f"{key[:4]}…"


NONE = "(none)"
"""The value that stands for a missing one."""

ANY_KEY = "*"
"""Among API keys: events of any project."""

ANY_TYPE = frozenset({"*", "_all"})
"""Event types in the settings that mean every type."""

Operator = Literal[
    "is",
    "is not",
    "contains",
    "does not contain",
    "<",
    "<=",
    ">",
    ">=",
    "starts with",
    "does not start with",
    "glob",
    "not glob",
    "set contains",
    "set does not contain",
]

Value = str | int | float | bool


class Clause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on one property: ``{ property = "event.amount", op = ">=", values = [100] }``."""

    property: str
    op: Operator
    values: list[Value]


class Selector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Event types, and the conditions that such an event must meet."""

    types: list[str]
    where: list[Clause] = []


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file; keys it does not know are refused."""


class Rename(Section, frozen=True, kw_only=True, rename={"source": "from", "as_": "as"}):
    """``{ from = "company_name", to = "Company" }``; ``as = "date"`` for metadata that is one."""

    source: str
    to: str
    as_: Literal["date"] | None = None


class Http(Section, frozen=True, kw_only=True):
    """The HTTP source."""

    listen: Address = "127.0.0.1:8710"
    cors_origins: list[str] = msgspec.field(default_factory=lambda: ["*"])
    max_event_bytes: EventBytes = MAX_EVENT_BYTES
    max_held_bytes: HeldBytes = 67_108_864
    body_timeout_s: PositiveSeconds = 10.0
    idle_timeout_s: PositiveSeconds = 75.0
    max_connections: Positive = 1_024
    key_requests_per_s: PositiveNumber | None = None
    key_events_per_s: PositiveNumber | None = None
    ip_header: Annotated[str, msgspec.Meta(pattern=_HEADER)] = ""


class Admin(Section, frozen=True, kw_only=True):
    """Health, metrics, API."""

    listen: Address = "127.0.0.1:8711"
    token: Secret | None = None


class SpoolSettings(Section, frozen=True, kw_only=True):
    """The store on disk."""

    max_bytes: Annotated[int, msgspec.Meta(ge=1_000_000, le=MAX_BYTES)] = 10_000_000_000
    dedupe_window_s: Seconds = 7 * 24 * 3600.0
    dedupe_max_bytes: Annotated[int, msgspec.Meta(ge=1_000_000, le=MAX_BYTES)] = 1_000_000_000
    dead_letters_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 30.0
    dead_letters_max_bytes: Annotated[int, msgspec.Meta(ge=1_000_000, le=MAX_BYTES)] = 1_000_000_000
    max_contacts: Annotated[int, msgspec.Meta(ge=1_000, le=1_000_000_000)] = 1_000_000
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)] = 33_554_432


class Forward(Section, frozen=True, kw_only=True):
    """Reading files and pipes."""

    max_line_bytes: LineBytes = 1_048_576
    batch_lines: Positive = 2_000
    max_backlog: Positive = 100_000


class Export(Section, frozen=True, kw_only=True):
    """Fetching history from Amplitude's Export API."""

    api_key: Secret
    secret_key: Secret
    region: Literal["us", "eu"] = "us"
    base_url: Annotated[str, msgspec.Meta(pattern=_URL)] | None = None
    step_hours: Annotated[int, msgspec.Meta(ge=1, le=24)] = 6
    max_bytes: Annotated[int, msgspec.Meta(ge=1_000, le=MAX_BYTES)] = 4_294_967_296
    timeout_s: PositiveSeconds = 600.0


class Log(Section, frozen=True, kw_only=True):
    """Messages on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class Intercom(Section, frozen=True, kw_only=True):
    """The workspace that a sync writes to."""

    access_token: Secret
    region: Literal["us", "eu", "au"] = "us"
    base_url: Annotated[str, msgspec.Meta(pattern=_URL)] | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=6, le=int(MAX_RATE))] = 10_000
    max_in_flight: Positive = 400
    timeout_s: PositiveSeconds = 30.0


class Mapping(Section, frozen=True, kw_only=True, rename={"source": "from"}):
    """The contact of an Amplitude user, and the treatment of values without a counterpart."""

    identifier: Literal["external_id", "email"] = "external_id"
    source: Annotated[str, msgspec.Meta(pattern=_SOURCE)] = "user_id"
    nested: Literal["flatten", "drop"] = "flatten"
    arrays: Literal["join", "drop"] = "join"
    stringify: bool = False


class Relay(Section, frozen=True, kw_only=True):
    """Requests of SDKs go on to Amplitude as they came."""

    name: Name = "amplitude"
    amplitude_api_keys: list[Secret] = []
    enabled: bool = True
    region: Literal["us", "eu"] = "us"
    base_url: Annotated[str, msgspec.Meta(pattern=_URL)] | None = None
    when_full: Literal["drop_oldest", "refuse"] = "drop_oldest"
    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    timeout_s: PositiveSeconds = 30.0

    @property
    def taker(self) -> str:
        """Its name in the spool, which no sync can have."""
        return f"relay:{self.name}"

    @property
    def drops_oldest(self) -> bool:
        """Whether its oldest requests go where its share of the spool is taken."""
        return self.when_full == "drop_oldest"


class Users(Section, frozen=True, kw_only=True):
    """Create & Update Users."""

    enabled: bool = True
    properties: list[str | Rename] = []
    trigger: Literal["identify", "any_update"] = "identify"
    archived: Literal["unarchive", "dead_letter"] = "unarchive"
    newer_wins: bool = True
    create_missing_attributes: bool = False
    refresh_attributes_s: PositiveSeconds = 600.0


class Events(Section, frozen=True, kw_only=True):
    """Send Events."""

    enabled: bool = True
    select: list[Selector] = []
    rename: dict[str, str] = {}
    metadata: list[str | Rename] = []
    metadata_limit: Annotated[int, msgspec.Meta(ge=0, le=100)] = 20
    unknown_user: Literal["park", "create", "dead_letter", "drop"] = "park"
    loop_guard: bool = True
    money: dict[str, str] = {}
    max_ahead_s: Seconds = 0.0
    max_age_s: PositiveSeconds = 7305 * 24 * 3600.0


MAX_SHIFT_S: Final = 600
"""Furthest that an event may be moved: its user's later events wait for its second."""


class Delivery(Section, frozen=True, kw_only=True):
    """Order, retries and memory of the way to Intercom."""

    read_ahead: Positive = 2048
    retry_attempts: Annotated[int, msgspec.Meta(ge=1, le=30)] = 10
    retry_window_s: PositiveSeconds = 4 * 3600.0
    same_second_window_s: Seconds = 24 * 3600.0
    same_second_shift_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_SHIFT_S)] = 60
    probe_first_s: PositiveSeconds = 0.5
    probe_most_s: PositiveSeconds = 10.0


class Sync(Section, frozen=True, kw_only=True):
    """One stream: Amplitude projects to one Intercom workspace."""

    name: Name
    amplitude_api_keys: list[Secret] = []
    enabled: bool = True
    intercom: Intercom
    mapping: Mapping = Mapping()
    users: Users = Users()
    events: Events = Events()
    delivery: Delivery = Delivery()


class Settings(Section, frozen=True, kw_only=True):
    """All of it."""

    data_dir: str = "data"
    drain_deadline_s: Seconds = 25.0
    http: Http | None = None
    admin: Admin | None = None
    sources: dict[str, dict[str, Any]] = {}
    spool: SpoolSettings = SpoolSettings()
    forward: Forward = Forward()
    log: Log = Log()
    relay: list[Relay] = []
    export: Export | None = None
    sync: Annotated[list[Sync], msgspec.Meta(min_length=1)]

    def keys_of(self, relay: Relay) -> list[Secret]:
        """Return the API keys of a relay: its own, or those of the syncs where it names none."""
        of_syncs = {key.reveal(): key for sync in self.sync for key in sync.amplitude_api_keys}
        return relay.amplitude_api_keys or list(of_syncs.values())

    @property
    def data_path(self) -> str:
        """The whole path of the data directory: a daemon is recognised by it."""
        return os.path.realpath(self.data_dir)

    @property
    def max_event_bytes(self) -> int:
        """The largest event that is taken in, by whichever way it comes."""
        return (self.http or Http()).max_event_bytes

    @property
    def largest_file_event_bytes(self) -> int:
        """How many bytes an event of a file can have."""
        http = self.http or Http()
        return min(self.forward.max_line_bytes, http.max_event_bytes)


MAX_EVENT_TYPES: Final = 120
"""Active event names that a workspace can have (help article 5245634)."""


def source_and_target(item: str | Rename) -> tuple[str, str]:
    """Return a selected property and the name it gets in Intercom."""
    if isinstance(item, Rename):
        return item.source, item.to
    return item, item.removeprefix("user.").removeprefix("event.")


MEANINGS: Final[dict[str, str]] = {
    "data_dir": (
        "where the spool is; one process at a time; refused where every user of the machine "
        "can write"
    ),
    "drain_deadline_s": "seconds that SIGTERM leaves for calls under way",
    "http.listen": "the HTTP source; leave `[http]` out to have none",
    "http.cors_origins": "browsers that may send (an Amplitude key is public); `[]` = none",
    "http.max_event_bytes": (
        "bytes of one event; a larger one is refused by index, from `/`, `/webhook` and files a "
        "dead letter"
    ),
    "http.max_held_bytes": (
        "bytes of request bodies that are held at once; others wait. One address holds a half at "
        "most, and bodies over 256 KiB leave a half to smaller ones"
    ),
    "http.body_timeout_s": "seconds that a body may take to arrive, its wait for bytes included",
    "http.idle_timeout_s": (
        "seconds until a connection without a request is closed; one whose request has begun has 10"
    ),
    "http.max_connections": (
        "connections that are open at once, at most half of what the process may open; others wait"
    ),
    "http.key_requests_per_s": (
        "requests a second that one API key may make in the long run; after a pause ten seconds' "
        "worth may come at once; more are answered 429"
    ),
    "http.key_events_per_s": (
        "events a second that one API key may send in the long run; after a pause ten seconds' "
        "worth may come at once; more are answered 429 and listed as throttled"
    ),
    "http.ip_header": (
        "header in which a trusted proxy in front says the client's address (the last, where it "
        "lists several), for `$remote` and the share of one address; empty: the connection's"
    ),
    "admin.listen": "health, metrics, API; leave `[admin]` out to have none",
    "admin.token": "needed to listen beyond loopback",
    "sources": (
        "further sources: `[sources.NAME]` holds the arguments of the installed one; `env:` and "
        "`file:` work here too"
    ),
    "spool.max_bytes": (
        "bytes of events that may wait, of all syncs; above 80 % of it those over an equal share"
        " are answered 503, at all of it everybody"
    ),
    "spool.dedupe_window_s": "seconds for which insert ids are remembered",
    "spool.dedupe_max_bytes": "disk space for insert ids; beyond it the oldest are forgotten",
    "spool.dead_letters_days": (
        "days for which dead letters are kept; one that goes is counted as `expired_letter`"
    ),
    "spool.dead_letters_max_bytes": "disk space for dead letters; beyond it the oldest go",
    "spool.max_contacts": (
        "contacts that are remembered; beyond it those that were asked for least recently go"
    ),
    "spool.reserve_bytes": (
        "disk space that is kept back, so that deliveries go on where others fill the disk; "
        "intake answers 503 then, and until as much again is free"
    ),
    "forward.max_line_bytes": "a longer line becomes a dead letter",
    "forward.batch_lines": "lines that are handed over at once",
    "forward.max_backlog": "events in the spool's queue above which reading pauses",
    "log.level": "`debug`, `info`, `warning`, `error`",
    "log.format": "`human`, `json`; `auto`: human on a terminal",
    "relay.name": "letters, digits, `-`, `_`; the spool knows its requests by it",
    "relay.amplitude_api_keys": (
        'whose requests go on to Amplitude; `[]` = those of the syncs; `["*"]` = any, also what '
        "strangers make up"
    ),
    "relay.enabled": "off: nothing more is taken for it; what waits is sent",
    "relay.region": "`us`, `eu`",
    "relay.base_url": "instead of region: a proxy, a local Amplitude",
    "relay.when_full": (
        "`drop_oldest`: beyond an equal share of `spool.max_bytes` its oldest go, counted as "
        "`relay_overflow`; `refuse`: requests are answered 503, as a sync's that is over its share"
    ),
    "relay.connections": "requests that may be out at once",
    "relay.timeout_s": "seconds until a request counts as unanswered",
    "export.api_key": "of the Amplitude project that `forward --export` fetches from",
    "export.secret_key": "of the same project",
    "export.region": "`us`, `eu`",
    "export.base_url": "instead of region: a proxy, a local Amplitude",
    "export.step_hours": (
        "hours that are asked for at once, 24 at most; halved where they are too much for Amplitude"
    ),
    "export.max_bytes": (
        "disk space for one fetched export, in `data_dir/export`; where it is longer, fewer hours "
        "are asked for"
    ),
    "export.timeout_s": "seconds without a byte until a fetch counts as unanswered",
    "sync.name": "letters, digits, `-`, `_`; the spool knows its events by it",
    "sync.amplitude_api_keys": 'whose events this sync takes; `["*"]` = any',
    "sync.enabled": "off: events are counted and dropped, what waits is kept",
    "sync.intercom.access_token": "syncs with the same token share one rate budget",
    "sync.intercom.region": "`us`, `eu`, `au`",
    "sync.intercom.base_url": "instead of region: a proxy, the sandbox",
    "sync.intercom.requests_per_minute": "the first guess; the server's headers replace it",
    "sync.intercom.max_in_flight": (
        "calls that may be out at once, or answered and not settled on disk yet: a kill repeats "
        "these"
    ),
    "sync.intercom.timeout_s": "seconds until a call counts as unanswered",
    "sync.mapping.identifier": "how contacts are found: `external_id`, `email`",
    "sync.mapping.from": (
        "what feeds it: `user_id`, `device_id`, `user.<property>`, `event.<property>`"
    ),
    "sync.mapping.nested": (
        "an object in metadata: its keys become keys of their own (`place_city`), or `drop`"
    ),
    "sync.mapping.arrays": "an array: one text (`a, b`), or `drop`",
    "sync.mapping.stringify": "numbers and booleans as text, as Amplitude's own stream sends them",
    "sync.users.enabled": "Create & Update Users: an Identify creates or updates the contact",
    "sync.users.properties": (
        'user properties to write; `{ from = "a", to = "b" }` renames; `[]` = none'
    ),
    "sync.users.trigger": "`any_update`: events that carry a selected property update too",
    "sync.users.archived": "a contact found archived: bring it back, or `dead_letter`",
    "sync.users.newer_wins": (
        "with `any_update`, and for what is replayed: an event that is older than the one which set"
        " a property last neither sets nor unsets it; `$add` and the like count"
    ),
    "sync.users.create_missing_attributes": (
        "create attributes that the workspace lacks; a number gets a type with decimals"
    ),
    "sync.users.refresh_attributes_s": (
        "seconds after which the workspace's list of attributes is read again"
    ),
    "sync.events.enabled": "Send Events",
    "sync.events.select": '`{ types = […], where = […] }`, OR-ed; `"*"` = any type; `[]` = none',
    "sync.events.rename": '`{ "Old name" = "New name" }`, in Intercom',
    "sync.events.metadata": (
        'event properties to send, in order of priority; `user.NAME` for a user\'s; `{ from = "a",'
        ' to = "b", as = "date" }` renames, and sends a date as one'
    ),
    "sync.events.metadata_limit": (
        "keys that are sent at most; Intercom's reference says 10 are kept, its help page 20"
    ),
    "sync.events.unknown_user": (
        "an event of a user Intercom does not know: `park`, `create`, `dead_letter`, `drop`"
    ),
    "sync.events.loop_guard": "drop `[Intercom] …` events that came back through Amplitude",
    "sync.events.money": '`{ price = "currency" }`: becomes an exact amount in minor units',
    "sync.events.max_ahead_s": (
        "seconds that an event's clock may be ahead; beyond, it gets the moment of its acceptance"
    ),
    "sync.events.max_age_s": (
        "seconds that an event may be old, twenty years; older ones become dead letters"
    ),
    "sync.delivery.read_ahead": (
        "events that are loaded from the spool at once, of users that may have a turn"
    ),
    "sync.delivery.retry_attempts": "calls for one record before it becomes a dead letter",
    "sync.delivery.retry_window_s": "seconds over which they are spread",
    "sync.delivery.same_second_window_s": (
        "seconds for which it is remembered which event has which second of its user; 0 = off"
    ),
    "sync.delivery.same_second_shift_s": (
        "seconds by which an event is moved, at most, where a different one of its user and name "
        "has its second already; it is sent once the new second has begun; 0 to 600"
    ),
    "sync.delivery.probe_first_s": "first pause between probes in an outage",
    "sync.delivery.probe_most_s": "longest pause between probes in an outage",
}
"""What each setting is, by its path: for the reference and for ``amplitude-intercom explain``."""
