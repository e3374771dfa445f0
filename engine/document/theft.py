"""Whether a change from the console would give away a secret, or access: pure.

Rules
=====
Whoever may edit the settings must not learn a secret by them. A **use** of a secret is the text of
a setting (``env:NAME``, ``file:PATH``, or the secret itself) with its receiver:
the address that gets it, or the purpose that it serves.

1. A use that the present settings have is allowed: nothing new learns the secret.
2. A secret that was typed in the same change is allowed everywhere: the person knows it.
3. Another use of a secret that the settings have is refused: it has to be typed again. So it is
   with a new ``region`` or ``base_url``, with a token that moves to another sync, and with a token
   that becomes an API key, of which people may see the end.
4. A file of the folder of typed secrets may be named as the token of a sync at Intercom's own
   addresses: nobody else gets it there.
5. Any other ``env:`` or ``file:`` is refused: only the file's owner names new ones. Nothing is read
   before this is decided, so that no message tells which files and variables there are.
6. A relay to Amplitude's own addresses may take any API key that the settings have: Amplitude has
   them all. No other secret becomes one.
7. A source may go, and is not added or changed. It reads what its arguments name, maybe a file
   with secrets, and what it cannot take becomes dead letters that the console shows.
8. A relay sends whole requests, so a new address of one is refused as well where nothing can be
   typed, as with ``*``.
9. ``[admin]`` stays exactly as it is. It says who may use the console: a stolen session must not
   become access for good, nor lock the owner out. Its owner changes it in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from amplitude_intercom.engine.addresses import normal_url
from amplitude_intercom.engine.document.refusals import Objection
from amplitude_intercom.engine.document.secret_files import SecretFolder
from amplitude_intercom.engine.document.secret_values import (
    SecretValue,
    is_reference,
    secret_values,
)
from amplitude_intercom.engine.document.tables import Table, canonical, same, written
from amplitude_intercom.engine.setting_types import ANY_KEY
from amplitude_intercom.transports.amplitude_client import INGESTION_URLS
from amplitude_intercom.transports.amplitude_exports import BASE_URLS as EXPORT_URLS
from amplitude_intercom.transports.intercom import BASE_URLS

AMPLITUDE: Final = frozenset(map(normal_url, INGESTION_URLS.values()))
INTERCOM: Final = frozenset(map(normal_url, BASE_URLS.values()))


class Use(NamedTuple):
    """A secret, or its name, and where it is used; ``path`` is its key in messages."""

    path: str
    secret: str
    kind: str
    address: str

    @property
    def is_by(self) -> tuple[str, str, str]:
        """The use itself, without the key that it stands at."""
        return self.secret, self.kind, self.address


def problems(
    present: Table,
    wanted: Table,
    *,
    typed: Collection[str],
    secrets: SecretFolder,
    trusted: Sequence[Table] = (),
) -> Iterator[Objection]:
    """Yield the parts of a change that are not allowed from the console; empty: all are.

    ``typed``: the secrets that were typed in this change, and the ``file:`` names under which such
    were stored for it. ``trusted``: further tables of which each use is allowed: a kept version.
    """
    if not same(present.get("admin"), wanted.get("admin")):
        yield Objection("admin", "access", "[admin] is changed in the file itself, on its machine")
    yield from _source_problems((present, *trusted), wanted)
    before = [use for table in (present, *trusted) for use in uses(table)]
    allowed = {use.is_by for use in before}
    known = {use.secret for use in before}
    api_keys = {ANY_KEY, *(use.secret for use in before if use.kind in ("api_key", "relay"))}
    for use in uses(wanted):
        if use.kind == "source":
            continue
        to_amplitude = use.kind == "relay" and use.address in AMPLITUDE and use.secret in api_keys
        if use.is_by in allowed or to_amplitude or _is_harmless(use, typed):
            continue
        problem = _problem(use, known, secrets)
        if problem is not None:
            yield problem


def _source_problems(before: Sequence[Table], wanted: Table) -> Iterator[Objection]:
    sources = wanted.get("sources", {})
    if not isinstance(sources, dict):
        yield Objection("sources", "not_from_here", _NEW_SOURCE)
        return
    for name, arguments in sources.items():
        if not any(_is_there(table.get("sources"), name, arguments) for table in before):
            yield Objection(f"sources.{name}", "not_from_here", _NEW_SOURCE)


def _is_there(sources: Any, name: str, arguments: Any) -> bool:
    return isinstance(sources, dict) and name in sources and same(sources[name], arguments)


def _is_harmless(use: Use, typed: Collection[str]) -> bool:
    """Whether a new use teaches nobody a secret."""
    if use.secret == ANY_KEY:  # it can be typed, and is nobody's
        return use.kind == "api_key"
    return use.secret in typed


def _problem(use: Use, known: Collection[str], secrets: SecretFolder) -> Objection | None:
    if use.secret == ANY_KEY:
        return Objection(use.path, "not_from_here", _NEW_RECEIVER)
    if not is_reference(use.secret) or use.secret in known:
        return Objection(use.path, "type_again", _TYPE_AGAIN[use.kind])
    if secrets.path_of(use.secret) is None:
        return Objection(use.path, "not_from_here", _NEW_NAME)
    if use.kind == "intercom" and use.address in INTERCOM:
        return None
    return Objection(use.path, "type_again", _TYPE_AGAIN[use.kind])


_NEW_RECEIVER: Final = (
    "whole requests would go to a new address; set it in the file itself, on its machine"
)
_NEW_SOURCE: Final = (
    "a source may read any file of the machine; it is added or changed in the settings file itself,"
    " on its machine"
)
_NEW_NAME: Final = (
    "a new `env:` or `file:` is named in the file itself, on its machine; here, type the secret, "
    "or name one that the settings use for the same address"
)
_TYPE_AGAIN: Final = {
    "intercom": "the token would go to another address than before: type it again",
    "relay": "the key would go to another address than before: type it again",
    "export": "the key would go to another address than before: type it again",
    "api_key": "it would be used as an API key, which it was not: type it again",
    "admin": "it would be used as the console's token, which it was not: type it again",
    "unknown": "it would be used at a key that is no setting: type it again",
}


# --- uses ---------------------------------------------------------------------------------


def uses(table: Table) -> Iterator[Use]:
    """Yield each use of a secret in a table of settings, which need not be right."""
    for secret in secret_values(table):
        if isinstance(secret.value, str):
            yield _use(secret, table)
    for index, relay in enumerate(_tables(table.get("relay"))):
        if not relay.get("amplitude_api_keys"):
            path = f"relay[{index}]"
            for key in _keys_of_syncs(table):
                yield Use(path, key, "relay", _address(relay, INGESTION_URLS))


def _use(found: SecretValue, table: Table) -> Use:
    path, secret = written(found.path), found.value
    match found.path:
        case ("sync", int() as index, "intercom", "access_token"):
            address = _address(table["sync"][index]["intercom"], BASE_URLS)
            return Use(path, secret, "intercom", address)
        case ("sync", int(), "amplitude_api_keys", int()):
            return Use(path, secret, "api_key", "")
        case ("relay", int() as index, "amplitude_api_keys", int()):
            return Use(path, secret, "relay", _address(table["relay"][index], INGESTION_URLS))
        case ("export", "api_key" | "secret_key"):
            return Use(path, secret, "export", _address(table["export"], EXPORT_URLS))
        case ("admin", "token" | "read_token"):
            return Use(path, secret, "admin", "")
        case ("sources", *_):
            return Use(path, secret, "source", "")
    return Use(path, secret, "unknown", path)


def _keys_of_syncs(table: Table) -> list[str]:
    """Return the keys that a relay without its own takes; ``*`` where there are none."""
    keys = [
        secret.value
        for secret in secret_values(table)
        if secret.path[0] == "sync" and "amplitude_api_keys" in secret.path
    ]
    return [key for key in keys if isinstance(key, str)] or [ANY_KEY]


def _address(table: Table, regions: Mapping[str, str]) -> str:
    """Return the address that a table's secrets go to, in its one spelling."""
    url, region = table.get("base_url"), table.get("region", "us")
    if url is None:
        url = regions.get(region) if isinstance(region, str) else None
    if not isinstance(url, str):
        return f"? {canonical(table.get('base_url'))} {canonical(region)}"
    try:
        return normal_url(url)
    except (ValueError, KeyError):
        return f"? {url}"


def _tables(value: Any) -> list[Table]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
