"""Findings in settings alone. ``check`` and previews show them; a start logs those about keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.findings.finding import Finding, placed
from amplitude_intercom.engine.findings.sync_findings import sync_findings
from amplitude_intercom.engine.setting_types import ANY_KEY, SPELLED_OUT, Secret
from amplitude_intercom.engine.settings import Settings, Sync

EVERYBODY = ("0.0.0.0", "::")  # noqa: S104 - hosts that are compared with


def every_finding(settings: Settings, table: dict[str, Any]) -> Iterator[Finding]:
    """Yield all findings in settings alone; ``table``: that of their file."""
    yield from general_findings(settings, table)
    for index, sync in enumerate(settings.sync):
        yield from placed(f"sync[{index}]", findings_of_sync(settings, sync))


def general_findings(settings: Settings, table: dict[str, Any]) -> Iterator[Finding]:
    """Yield the findings that belong to no one sync alone."""
    yield from key_findings(settings)
    yield from secret_findings(settings)
    yield from relay_findings(settings)
    yield from shared_fields(settings)
    yield from port_findings(settings)
    yield from host_findings(table)


def findings_of_sync(settings: Settings, sync: Sync) -> Iterator[Finding]:
    """Yield the findings in one sync, with keys as its table has them."""
    is_fed = any(sync.name in arguments.values() for arguments in settings.sources.values())
    yield from sync_findings(sync, has_source=is_fed)


def key_findings(settings: Settings) -> Iterator[Finding]:
    """Yield findings about API keys, and the syncs that take their events."""
    keys = [key for taker in settings.sync for key in taker.amplitude_api_keys]
    keys += [key for relay in settings.relay for key in relay.amplitude_api_keys]
    if settings.http is not None and not keys:
        text = "no sync has `amplitude_api_keys`: every client is refused, and drops its events"
        yield Finding("error", "http", text)
    enabled = [sync for sync in settings.sync if sync.enabled]
    taken = {key.reveal() for sync in enabled for key in sync.amplitude_api_keys}
    for index, sync in enumerate(settings.sync):
        for key in sync.amplitude_api_keys:
            if not sync.enabled and taken.isdisjoint((key.reveal(), ANY_KEY)):
                text = f"no enabled sync takes the key {key_name(key)}: its events are dropped"
                yield Finding("warning", f"sync[{index}].amplitude_api_keys", text)
    for first, other in _taking_one_key(enabled):
        if shared := _shared_key(first, other):
            text = (
                f"`{first.name}` and `{other.name}` take the key {key_name(shared)} and have one"
                " access token: what both select is sent twice"
            )
            yield Finding("warning", "sync", text)


def _taking_one_key(syncs: list[Sync]) -> Iterator[tuple[Sync, Sync]]:
    """Yield the pairs of syncs that take a key of one project with one access token.

    A thousand syncs are half a million pairs, so pairs are not looked for one by one.
    """
    takers: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, sync in enumerate(syncs):
        for key in {*_keys(sync), _OF_ANY} if sync.amplitude_api_keys else ():
            takers[_receiver(sync), key].append(place)
    for place, sync in enumerate(syncs):
        mine = _keys(sync)
        wanted = [_OF_ANY] if ANY_KEY in mine else [*mine, ANY_KEY] if mine else []
        others = {other for key in wanted for other in takers.get((_receiver(sync), key), ())}
        yield from ((sync, syncs[other]) for other in sorted(others) if other > place)


_OF_ANY = ""
"""Stands for the keys of a sync, whichever they are."""


def _keys(sync: Sync) -> set[str]:
    return {key.reveal() for key in sync.amplitude_api_keys}


def secret_findings(settings: Settings) -> Iterator[Finding]:
    """Yield which secrets are spelled out: whoever may read or copy the settings has them."""
    held: list[tuple[str, Secret | None]] = [
        (f"sync[{index}].intercom.access_token", sync.intercom.access_token)
        for index, sync in enumerate(settings.sync)
    ]
    if settings.admin:
        held.append(("admin.token", settings.admin.token))
        held.append(("admin.read_token", settings.admin.read_token))
    held.append(("export.secret_key", settings.export.secret_key if settings.export else None))
    for key, secret in held:
        if secret is not None and secret.source == SPELLED_OUT:
            text = 'it is spelled out: better "env:NAME" or "file:PATH", which tell nobody'
            yield Finding("warning", key, text)


def host_findings(table: dict[str, Any]) -> Iterator[Finding]:
    """Yield which regions count for nothing beside a ``base_url``; ``table``: checked settings."""
    syncs = enumerate(table.get("sync", []))
    held = [(f"sync[{index}].intercom", sync["intercom"]) for index, sync in syncs]
    held += [(f"relay[{index}]", relay) for index, relay in enumerate(table.get("relay", []))]
    held.append(("export", table.get("export", {})))
    for where, host in held:
        if "base_url" in host and "region" in host:
            yield Finding("warning", f"{where}.region", "`base_url` is used instead; leave one out")


def relay_findings(settings: Settings) -> Iterator[Finding]:
    """Yield findings about events that no relay gets or passes on."""
    relays = [relay for relay in settings.relay if relay.enabled]
    if relays and settings.http is None:
        yield Finding("warning", "relay", "there is no [http]: nothing comes that could go on")
    relayed = {key.reveal() for relay in relays for key in settings.keys_of(relay)}
    for index, sync in enumerate(settings.sync):
        for key in sync.amplitude_api_keys:
            if relays and key.reveal() not in relayed and ANY_KEY not in relayed:
                text = f"no relay takes the key {key_name(key)}: Amplitude does not get its events"
                yield Finding("warning", f"sync[{index}].amplitude_api_keys", text)


def shared_fields(settings: Settings) -> Iterator[Finding]:
    """Yield which fields of contacts two syncs write."""
    held = [(_receiver(s), s.written_fields, s) for s in settings.sync if s.enabled]
    for (one, mine, first), (another, theirs, other) in combinations(held, 2):
        if one != another or mine.isdisjoint(theirs):
            continue
        both = sorted(mine & theirs)
        names = ", ".join(f"`{name}`" for name in both)
        if first.mapping.identifier == other.mapping.identifier:
            what = "the one that comes last is right, and each counts on from it"
        else:
            what = "they find contacts by different fields, and do not know what the other wrote"
        text = f"`{first.name}` and `{other.name}` both write {names} to one workspace's contacts"
        yield Finding("warning", "sync", f"{text}: {what}; let one of them have it")


def key_name(key: Secret) -> str:
    """Return a key as the settings spell it; one that is spelled out is not shown whole."""
    if key.reveal() == ANY_KEY:
        return "* (any)"
    return key.source if key.source != SPELLED_OUT else f"{key.reveal()[:4]}…"


def _receiver(sync: Sync) -> tuple[str, str, str | None]:
    """Return what two syncs share that write to one workspace."""
    intercom = sync.intercom
    return intercom.access_token.reveal(), intercom.region, intercom.base_url


def _shared_key(first: Sync, other: Sync) -> Secret | None:
    theirs = {key.reveal() for key in other.amplitude_api_keys}
    mine = {key.reveal() for key in first.amplitude_api_keys}
    for key in first.amplitude_api_keys:
        if theirs & {key.reveal(), ANY_KEY} or (theirs and key.reveal() == ANY_KEY):
            return key
    return next((k for k in other.amplitude_api_keys if k.reveal() == ANY_KEY and mine), None)


def addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the settings that say where the daemon listens, and the addresses."""
    if settings.http is not None:
        yield "http.listen", settings.http.listen
    if settings.admin is not None:
        yield "admin.listen", settings.admin.listen


def port_findings(settings: Settings) -> Iterator[Finding]:
    """Yield which addresses are meant for two servers, or for ours and an Intercom."""
    for (first, address), (other, same) in combinations(addresses(settings), 2):
        if _overlap(address, same):
            yield Finding("error", other, f"{same} is the address of {first} too")
    for index, sync in enumerate(settings.sync):
        host = (sync.intercom.base_url or "").partition("://")[2].partition("/")[0]
        for name, address in addresses(settings):
            if ":" in host and host.rpartition(":")[2].isdecimal() and _overlap(address, host):
                text = f"{sync.intercom.base_url} is this program's own {name}"
                yield Finding("error", f"sync[{index}].intercom.base_url", text)


def _overlap(first: str, other: str) -> bool:
    (host, port), (other_host, other_port) = host_and_port(first), host_and_port(other)
    if port != other_port or not port:
        return False
    if {host, other_host} & set(EVERYBODY):
        return True
    return _as_loopback(host) == _as_loopback(other_host)


def _as_loopback(host: str) -> str:
    return "127.0.0.1" if host.lower() == "localhost" else host.lower()
