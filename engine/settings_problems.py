"""Errors in settings that each field alone allows: fields that contradict or repeat each other.

Each error begins with the key of its setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from amplitude_intercom.engine.addresses import (
    MAX_PORT,
    host_and_port,
    is_loopback,
    normal_host,
    normal_url,
)
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.rules.texts import fit_name, is_blank, is_legal_key
from amplitude_intercom.engine.setting_types import ANY_TYPE, Secret
from amplitude_intercom.engine.settings import (
    MAX_EVENT_TYPES,
    Admin,
    Events,
    Rename,
    Settings,
    Sync,
    source_and_target,
)


def problems(settings: Settings) -> Iterator[str]:
    """Yield errors that concern several fields."""
    if not (settings.sync or settings.relay or settings.admin):
        yield "sync: Expected at least one `[[sync]]`, or `[admin]` to add the first one by"
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
        yield from _intercom_problems(where, sync)
    yield from _relay_problems(settings)
    yield from _path_problems("data_dir", settings.data_dir)
    if settings.http and "http" in settings.sources:
        yield "sources.http: [http] is that source already; leave one of the two out"
    if settings.export:
        yield from _url_problems("export.base_url", settings.export.base_url)
    for section, server in (("http", settings.http), ("admin", settings.admin)):
        if server:
            yield from _listen_problems(f"{section}.listen", server.listen)
    if settings.admin:
        yield from _admin_problems(settings.admin)


def _admin_problems(admin: Admin) -> Iterator[str]:
    if not admin.token and not is_loopback(admin.listen):
        yield (
            f"admin.token: needed to listen beyond loopback ({admin.listen}); "
            'set token = "env:NAME"'
        )
    if admin.read_token and not admin.token:
        yield "admin.read_token: without admin.token nobody needs it; set that too"
    if admin.read_token and admin.read_token == admin.token:
        yield "admin.read_token: it is the same as admin.token; choose another"
    for index, host in enumerate(admin.hosts):
        try:
            normal_host(host)
        except ValueError as error:
            yield f"admin.hosts[{index}]: {error}, without a port"


def _relay_problems(settings: Settings) -> Iterator[str]:
    names = [relay.name for relay in settings.relay]
    for index, relay in enumerate(settings.relay):
        where = f"relay[{index}]"
        if relay.name in names[:index]:
            yield f"{where}.name: `{relay.name}` is taken by another relay"
        yield from _url_problems(f"{where}.base_url", relay.base_url)
        yield from _key_problems(where, relay.amplitude_api_keys)
        if settings.http and relay.base_url and _is_ours(relay.base_url, settings.http.listen):
            yield f"{where}.base_url: it is this program's own address, `http.listen`"


def _is_ours(url: str, listen: str) -> bool:
    """Whether a URL leads to an address that is listened on, as far as its text tells."""
    host, port = host_and_port(listen)
    parts = urlsplit(url)
    theirs = parts.port or (443 if parts.scheme == "https" else 80)
    is_here = parts.hostname in (host.lower(), "localhost", "127.0.0.1", "::1")
    return theirs == port and port != 0 and is_here


def _url_problems(where: str, url: str | None) -> Iterator[str]:
    try:
        normal_url(url or "https://localhost")
    except ValueError as error:
        yield f"{where}: {error}"


def _intercom_problems(where: str, sync: Sync) -> Iterator[str]:
    yield from _url_problems(f"{where}.intercom.base_url", sync.intercom.base_url)
    yield from _key_problems(where, sync.amplitude_api_keys)


def _key_problems(where: str, secrets: list[Secret]) -> Iterator[str]:
    keys = [key.reveal() for key in secrets]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            first = keys.index(key)
            yield f"{where}.amplitude_api_keys[{index}]: the same key as the one at [{first}]"


def _path_problems(where: str, path: str) -> Iterator[str]:
    if not path or "\0" in path:
        yield f"{where}: Expected a path, which has characters and no NUL"
        return
    try:
        os.fsencode(home_expanded(path))
    except UnicodeEncodeError:
        yield f"{where}: Expected a path that the system's encoding can spell"
    except ValueError as error:
        yield f"{where}: {error}"


def _listen_problems(where: str, address: str) -> Iterator[str]:
    host, port = host_and_port(address)
    if port > MAX_PORT:
        yield f"{where}: Expected a port up to {MAX_PORT}, not {address}"
    try:
        normal_host(host)
    except ValueError as error:
        yield f"{where}: {error}"


def _selection_problems(where: str, events: Events) -> Iterator[str]:
    try:
        types = Selection(events.select).types - ANY_TYPE
    except ValueError as error:
        yield f"{where}.events.select{error}"  # it begins with its index
        return
    blank = next((old for old, new in events.rename.items() if is_blank(new)), None)
    if blank is not None:
        yield f"{where}.events.rename.{blank}: Expected a name, this one is blank"
    in_order = dict.fromkeys(name for s in events.select for name in s.types if name in types)
    names = event_names(in_order, events)
    if len(names) > MAX_EVENT_TYPES:
        surplus = ", ".join(list(names.values())[MAX_EVENT_TYPES:])
        yield (
            f"{where}.events.select: Expected at most {MAX_EVENT_TYPES} event types, "
            f"which is all that Intercom keeps; {len(names)} are named. Surplus: {surplus}"
        )


def event_names(types: Iterable[str], events: Events) -> dict[str, str]:
    """Return the names of these event types in Intercom, each by the form that is compared."""
    names = [fit_name(events.rename.get(name, name)) for name in types]
    return {name.lower(): name for name in names}


def _attribute_problems(where: str, properties: list[str | Rename]) -> Iterator[str]:
    for index, item in enumerate(properties):
        if isinstance(item, Rename) and item.as_:
            yield f"{where}[{index}].as: is for metadata; a contact's attributes have their types"
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
        if is_blank(source) or is_blank(target):
            yield f"{where}[{index}]: Expected a property name, this one is blank"
        if target in seen:
            yield f"{where}[{index}]: `{target}` is fed twice"
        seen.add(target)


def _source_problems(where: str, properties: list[str | Rename]) -> Iterator[str]:
    sources = [source_and_target(item)[0].removeprefix("user.") for item in properties]
    for index, source in enumerate(sources):
        if source in sources[:index]:
            yield f"{where}[{index}]: `{source}` is sent twice"


def home_expanded(path: str) -> str:
    """Return a path with its leading ``~`` or ``~user`` replaced.

    Raises:
        ValueError: there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"Expected a user that exists in `{path}`")
    return expanded
