"""The settings: what the TOML file says, checked once, with each problem named by its key.

Every bound has a unit in its name. ``env:NAME`` and ``file:PATH`` fetch secrets, which never show
in a ``repr``, an error or a dump.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from engine.errors import SettingsError
from engine.fitting import fit_name, is_legal_key
from engine.selection import ANY_TYPE, Selection, Selector

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
_ADDRESS = r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}\Z"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
_SOURCE = r"^(user_id|device_id|user\..+|event\..+)\Z"
_URL = r"^https?://[^\s/?#@]+(/[^\s?#@]*)?\Z"
_IN_WORDS: Final = {
    _ADDRESS: "an address, `host:port`",
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

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "***") -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file; keys it does not know are refused."""


class Rename(_Section, frozen=True, kw_only=True, rename={"source": "from", "as_": "as"}):
    """``{ from = "company_name", to = "Company" }``; ``as = "date"`` for metadata that is one."""

    source: str
    to: str
    as_: Literal["date"] | None = None


class Http(_Section, frozen=True, kw_only=True):
    """The HTTP source."""

    listen: Address = "127.0.0.1:8710"
    cors_origins: list[str] = msgspec.field(default_factory=lambda: ["*"])
    max_held_bytes: Annotated[int, msgspec.Meta(ge=20_000_000)] = 67_108_864
    body_timeout_s: PositiveSeconds = 10.0
    idle_timeout_s: PositiveSeconds = 75.0
    max_connections: Positive = 1_024
    key_requests_per_s: PositiveNumber | None = None
    key_events_per_s: PositiveNumber | None = None


class Admin(_Section, frozen=True, kw_only=True):
    """Health, metrics, API."""

    listen: Address = "127.0.0.1:8711"
    token: Secret | None = None


class SpoolSettings(_Section, frozen=True, kw_only=True):
    """The store on disk; each sync has one."""

    max_bytes: Annotated[int, msgspec.Meta(ge=1_000_000)] = 10_000_000_000
    dedupe_window_s: Seconds = 7 * 24 * 3600.0
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0)] = 33_554_432


class Forward(_Section, frozen=True, kw_only=True):
    """Reading files and pipes."""

    max_line_bytes: Positive = 1_048_576
    batch_lines: Positive = 2_000
    max_backlog: Positive = 100_000


class Log(_Section, frozen=True, kw_only=True):
    """Messages on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class Intercom(_Section, frozen=True, kw_only=True):
    """The workspace that a sync writes to."""

    access_token: Secret
    region: Literal["us", "eu", "au"] = "us"
    base_url: Annotated[str, msgspec.Meta(pattern=_URL)] | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(ge=6)] = 10_000
    max_in_flight: Positive = 400
    timeout_s: PositiveSeconds = 30.0


class Mapping(_Section, frozen=True, kw_only=True, rename={"source": "from"}):
    """Which contact an Amplitude user is, and what becomes of values without a like."""

    identifier: Literal["external_id", "email"] = "external_id"
    source: Annotated[str, msgspec.Meta(pattern=_SOURCE)] = "user_id"
    nested: Literal["flatten", "drop"] = "flatten"
    arrays: Literal["join", "drop"] = "join"
    stringify: bool = False


class Users(_Section, frozen=True, kw_only=True):
    """Create & Update Users."""

    enabled: bool = True
    properties: list[str | Rename] = []
    trigger: Literal["identify", "any_update"] = "identify"
    archived: Literal["unarchive", "dead_letter"] = "unarchive"
    create_missing_attributes: bool = False
    refresh_attributes_s: PositiveSeconds = 600.0


class Events(_Section, frozen=True, kw_only=True):
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
    max_age_s: PositiveSeconds = 3650 * 24 * 3600.0


class Delivery(_Section, frozen=True, kw_only=True):
    """Order, retries and memory of the way to Intercom."""

    lanes: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 512
    read_ahead: Annotated[int, msgspec.Meta(ge=1)] = 2048
    retry_attempts: Annotated[int, msgspec.Meta(ge=1, le=30)] = 10
    retry_window_s: PositiveSeconds = 4 * 3600.0
    twin_window_s: Seconds = 24 * 3600.0
    probe_first_s: PositiveSeconds = 0.5
    probe_most_s: PositiveSeconds = 10.0


class Sync(_Section, frozen=True, kw_only=True):
    """One stream: Amplitude projects to one Intercom workspace."""

    name: Name
    amplitude_api_keys: list[Secret] = []
    enabled: bool = True
    intercom: Intercom
    mapping: Mapping = Mapping()
    users: Users = Users()
    events: Events = Events()
    delivery: Delivery = Delivery()


class Settings(_Section, frozen=True, kw_only=True):
    """All of it."""

    data_dir: str = "data"
    drain_deadline_s: Seconds = 25.0
    http: Http | None = None
    admin: Admin | None = None
    sources: dict[str, dict[str, Any]] = {}
    spool: SpoolSettings = SpoolSettings()
    forward: Forward = Forward()
    log: Log = Log()
    sync: Annotated[list[Sync], msgspec.Meta(min_length=1)]


MAX_PORT: Final = 65_535
MAX_EVENT_TYPES: Final = 120
"""Active event names that a workspace can have (help article 5245634)."""


def load(path: Path) -> Settings:
    """Read and check a settings file. Relative paths in it start at the file's own folder.

    Raises:
        SettingsError: the file cannot be read, or something in it cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    return from_table(table, folder=path.parent, origin=f"{path}: ")


def from_table(table: dict[str, Any], *, folder: Path | None = None, origin: str = "") -> Settings:
    """Check a table of settings, as ``tomllib`` gives it.

    Raises:
        SettingsError: naming the key's path and what was expected.
    """
    folder = folder or Path()
    try:
        settings = msgspec.convert(
            table, Settings, dec_hook=lambda kind, value: _decode_secret(kind, value, folder)
        )
    except msgspec.ValidationError as error:
        raise SettingsError(origin + _explain(error)) from None
    problem = next(_problems(settings), None)
    if problem:
        raise SettingsError(origin + problem)
    try:
        sources = {
            name: _with_secrets(arguments, folder, f"sources.{name}")
            for name, arguments in settings.sources.items()
        }
    except ValueError as error:
        raise SettingsError(f"{origin}{error}") from None
    data_dir = str(folder / settings.data_dir)
    return msgspec.structs.replace(settings, data_dir=data_dir, sources=sources)


def _with_secrets(value: Any, folder: Path, where: str) -> Any:
    """Return a source's arguments with a ``Secret`` for each ``env:NAME`` and ``file:PATH``."""
    if isinstance(value, dict):
        return {k: _with_secrets(v, folder, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_with_secrets(v, folder, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str) or not value.startswith(("env:", "file:")):
        return value
    try:
        return _decode_secret(Secret, value, folder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def with_secrets_revealed(value: Any) -> Any:
    """Return a source's arguments as it takes them, each ``Secret`` being its text."""
    if isinstance(value, dict):
        return {k: with_secrets_revealed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_secrets_revealed(v) for v in value]
    return value.reveal() if isinstance(value, Secret) else value


def to_table(settings: Settings) -> dict[str, Any]:
    """Return the table that ``from_table`` would read as these settings.

    Secrets come out as their source; one that was spelled out comes out as ``***``.
    """
    table: dict[str, Any] = _without_none(msgspec.to_builtins(settings, enc_hook=_encode_secret))
    return table


def _without_none(value: Any) -> Any:
    """TOML has no null: a key without value is left out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _encode_secret(value: object) -> str:
    if isinstance(value, Secret):
        return value.source
    raise NotImplementedError(type(value))


def _decode_secret(kind: type, value: object, folder: Path) -> Secret:
    if kind is not Secret:
        raise NotImplementedError(kind)
    if not isinstance(value, str) or not value:
        raise ValueError("Expected non-empty text, `env:NAME` or `file:PATH`")
    scheme, _, rest = value.partition(":")
    if scheme == "env":
        return Secret(_from_environment(rest), value)
    if scheme == "file":
        return Secret(_from_file(folder / rest), value)
    return Secret(value)


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"Expected the environment variable `{name}` to be set")
    return value


def _from_file(path: Path) -> str:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a readable file `{path}`: {error}") from None
    if not value:
        raise ValueError(f"Expected a secret in the file `{path}`, it is empty")
    return value


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


def _explain(error: msgspec.ValidationError) -> str:
    """Turn msgspec's ``… - at `$.sync[0].users` `` into ``sync[0].users: …``."""
    match = _PATH.match(str(error))
    if match is None or not match["path"]:
        return str(error)
    what = match["what"]
    for pattern, words in _IN_WORDS.items():
        what = what.replace(f"`str` matching regex {pattern!r}", words)
    if what.startswith("Invalid enum value"):
        what = f"{what}; Expected one of {_choices(Settings, match['path'])}"
    return f"{match['path'].lstrip('.')}: {what}"


def _choices(kind: Any, path: str) -> str:
    """Return the values that the field at a path can have, of a struct and those inside it."""
    for name in re.findall(r"[^.\[\]]+", path):
        if name.isdecimal() or name == "...":
            continue
        kind = next(f.type for f in msgspec.structs.fields(kind) if f.encode_name == name)
        kind = next((k for k in _inside(kind) if hasattr(k, "__struct_fields__")), kind)
    return ", ".join(f"`{value}`" for value in get_args(kind))


def _inside(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield kind
    for inner in get_args(kind):
        yield from _inside(inner)


def _problems(settings: Settings) -> Iterator[str]:
    """Yield what no single field can know to be wrong."""
    names = [sync.name for sync in settings.sync]
    for index, sync in enumerate(settings.sync):
        where = f"sync[{index}]"
        if sync.name in names[:index]:
            yield f"{where}.name: `{sync.name}` is taken by another sync"
        yield from _selection_problems(where, sync.events)
        yield from _target_problems(f"{where}.users.properties", sync.users.properties)
        yield from _source_problems(f"{where}.users.properties", sync.users.properties)
        yield from _attribute_problems(f"{where}.users.properties", sync.users.properties)
        yield from _target_problems(f"{where}.events.metadata", sync.events.metadata)
    for section, server in (("http", settings.http), ("admin", settings.admin)):
        if server and host_and_port(server.listen)[1] > MAX_PORT:
            yield f"{section}.listen: Expected a port up to {MAX_PORT}, not {server.listen}"
    if settings.admin and not settings.admin.token and not is_loopback(settings.admin.listen):
        yield (
            f"admin.token: needed to listen beyond loopback ({settings.admin.listen}); "
            'set token = "env:NAME"'
        )


def _selection_problems(where: str, events: Events) -> Iterator[str]:
    try:
        types = Selection(events.select).types - ANY_TYPE
    except ValueError as error:
        yield f"{where}.events.select: {error}"
        return
    empty = next((old for old, new in events.rename.items() if not new), None)
    if empty is not None:
        yield f"{where}.events.rename.{empty}: Expected a name, this one is empty"
    in_order = dict.fromkeys(name for s in events.select for name in s.types if name in types)
    names = event_names(in_order, events)
    if len(names) > MAX_EVENT_TYPES:
        surplus = ", ".join(list(names.values())[MAX_EVENT_TYPES:])
        yield (
            f"{where}.events.select: Expected at most {MAX_EVENT_TYPES} event types, "
            f"which is all that Intercom keeps; {len(names)} are named. Surplus: {surplus}"
        )


def event_names(types: Iterable[str], events: Events) -> dict[str, str]:
    """Return the names that these event types have in Intercom, by what tells them apart there."""
    names = [fit_name(events.rename.get(name, name)) for name in types]
    return {name.lower(): name for name in names}


def _attribute_problems(where: str, properties: list[str | Rename]) -> Iterator[str]:
    for index, item in enumerate(properties):
        source, target = source_and_target(item)
        if target and not is_legal_key(target):
            yield (
                f"{where}[{index}]: `{target}` cannot be the name of an attribute in Intercom; "
                f'give it another one: {{ from = "{source}", to = "…" }}'
            )


def _target_problems(where: str, properties: list[str | Rename]) -> Iterator[str]:
    seen: set[str] = set()
    for index, item in enumerate(properties):
        source, target = source_and_target(item)
        if source in ("*", "user.*", "event.*"):
            yield f'{where}[{index}]: "*" is not offered: name the properties to send'
        if not source or not target:
            yield f"{where}[{index}]: Expected a property name, this one is empty"
        if target in seen:
            yield f"{where}[{index}]: `{target}` is fed twice"
        seen.add(target)


def _source_problems(where: str, properties: list[str | Rename]) -> Iterator[str]:
    sources = [source_and_target(item)[0].removeprefix("user.") for item in properties]
    for index, source in enumerate(sources):
        if source in sources[:index]:
            yield f"{where}[{index}]: `{source}` is sent twice"


def source_and_target(item: str | Rename) -> tuple[str, str]:
    """Return a selected property and the name it gets in Intercom."""
    if isinstance(item, Rename):
        return item.source, item.to
    return item, item.removeprefix("user.").removeprefix("event.")


def host_and_port(address: str) -> tuple[str, int]:
    """Split ``host:port``; brackets around an IPv6 host go."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach the address."""
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
