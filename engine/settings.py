"""The settings as values: one struct a table of the TOML file; a bound has its unit in its name.

``setting_types`` has the kinds of values, ``settings_meanings`` a sentence about each setting.
``engine.config`` reads and checks them.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Literal

import msgspec

from amplitude_intercom.engine.setting_types import (
    Address,
    ApiKey,
    HeaderName,
    Name,
    Operator,
    PropertySource,
    Secret,
    Url,
    Value,
)
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
    ip_header: HeaderName = ""


class Admin(Section, frozen=True, kw_only=True):
    """Health, metrics, API."""

    listen: Address = "127.0.0.1:8711"
    token: Secret | None = None
    read_token: Secret | None = None
    hosts: list[str] = []
    ip_header: HeaderName = ""
    scheme_header: HeaderName = ""
    hide_values: bool = False
    settings: Literal["edit", "view"] = "edit"


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

    api_key: ApiKey
    secret_key: Secret
    region: Literal["us", "eu"] = "us"
    base_url: Url | None = None
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
    base_url: Url | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=6, le=int(MAX_RATE))] = 10_000
    max_in_flight: Positive = 400
    timeout_s: PositiveSeconds = 30.0


class Mapping(Section, frozen=True, kw_only=True, rename={"source": "from"}):
    """The contact of an Amplitude user, and the treatment of values without a counterpart."""

    identifier: Literal["external_id", "email"] = "external_id"
    source: PropertySource = "user_id"
    nested: Literal["flatten", "drop"] = "flatten"
    arrays: Literal["join", "drop"] = "join"
    stringify: bool = False


class Relay(Section, frozen=True, kw_only=True):
    """Requests of SDKs go on to Amplitude as they came."""

    name: Name = "amplitude"
    amplitude_api_keys: list[ApiKey] = []
    enabled: bool = True
    region: Literal["us", "eu"] = "us"
    base_url: Url | None = None
    when_full: Literal["drop_oldest", "refuse"] = "drop_oldest"
    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    timeout_s: PositiveSeconds = 30.0

    @property
    def taker(self) -> str:
        """Its name in the spool, which no sync can have."""
        return f"relay:{self.name}"

    @property
    def host(self) -> tuple[str, str | None]:
        """The settings that name where it sends to."""
        return self.region, self.base_url

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
    amplitude_api_keys: list[ApiKey] = []
    enabled: bool = True
    intercom: Intercom
    mapping: Mapping = Mapping()
    users: Users = Users()
    events: Events = Events()
    delivery: Delivery = Delivery()

    @property
    def written_fields(self) -> set[str]:
        """The contact fields and attributes that its selected properties are written to."""
        chosen = self.users.properties if self.users.enabled else ()
        return {target for _, target in map(source_and_target, chosen)}


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
    sync: list[Sync] = []

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
