"""The settings file that ``init`` writes: its text from the answers, and the comments' own source.

A comment is the setting's meaning as ``explain`` and the reference have it. A key behind ``#`` is
off: it shows its default or an example.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.settings import Admin, Events, Http, Relay, SpoolSettings, Users
from amplitude_intercom.engine.settings_meanings import MEANINGS

HEAD: Final = """\
# Settings of amplitude-intercom. `amplitude-intercom check` tries them out.
# A line such as `#key = value` is off and shows what could be set: take the # away.
# `amplitude-intercom explain KEY` says more, also of the keys that are not here.
"""

WIDTH: Final = 98
ONE_LINE: Final = 88
"""Characters of a list beyond which each element has a line of its own."""


class Server(msgspec.Struct, frozen=True):
    """Where Intercom or Amplitude is: a region, or an address instead."""

    region: str = "us"
    url: str | None = None


class Layout(msgspec.Struct, frozen=True):
    """Where the daemon keeps its data and listens; ``admin_token`` is needed beyond loopback."""

    data_dir: str = "data"
    http: str = Http().listen
    admin: str = Admin().listen
    admin_token: str | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to the questions. Secrets are as the file spells them: ``env:…``, ``file:…``."""

    amplitude_key: str
    intercom_token: str
    intercom: Server = Server()
    relay: Server | None = Server()
    sync: str = "production"
    identifier: str = "external_id"
    source: str = "user_id"
    properties: Sequence[str] = ()
    create_missing: bool = False
    events: Sequence[str] = ()
    metadata: Sequence[str] = ()
    layout: Layout = Layout()


def settings_text(answers: Answers) -> str:
    """Return the commented TOML of the answers."""
    parts = (_daemon, _relay, _sync, _users, _events)
    return "\n".join([HEAD, *(line for part in parts for line in part(answers))]) + "\n"


def _daemon(answers: Answers) -> Iterator[str]:
    layout = answers.layout
    yield from _key("data_dir", layout.data_dir)
    yield from _table("[http]")
    yield from _key("http.listen", layout.http)
    yield from _table("[admin]")
    yield from _key("admin.listen", layout.admin)
    token = layout.admin_token
    yield from _key("admin.token", token or "env:ADMIN_TOKEN", is_given=token is not None)
    yield from _table("[spool]")
    yield from _key("spool.max_bytes", SpoolSettings().max_bytes, is_given=False)


def _relay(answers: Answers) -> Iterator[str]:
    if answers.relay is None:
        return
    yield from _table("[[relay]]", "Requests of SDKs go on to Amplitude as they came.")
    yield from _host("relay", answers.relay)
    yield from _key("relay.when_full", Relay().when_full, is_given=False)


def _sync(answers: Answers) -> Iterator[str]:
    yield from _table("[[sync]]")
    yield from _key("sync.name", answers.sync)
    yield from _key("sync.amplitude_api_keys", [answers.amplitude_key])
    yield from _table("[sync.intercom]")
    yield from _key("sync.intercom.access_token", answers.intercom_token)
    yield from _host("sync.intercom", answers.intercom)
    yield from _table("[sync.mapping]")
    yield from _key("sync.mapping.identifier", answers.identifier)
    yield from _key("sync.mapping.from", answers.source)


def _users(answers: Answers) -> Iterator[str]:
    yield from _table("[sync.users]", "Create & Update Users.")
    yield from _key("sync.users.properties", list(answers.properties))
    yield from _key("sync.users.trigger", Users().trigger, is_given=False)
    create = answers.create_missing
    yield from _key("sync.users.create_missing_attributes", create, is_given=create)


def _events(answers: Answers) -> Iterator[str]:
    yield from _table("[sync.events]", "Send Events.")
    selectors = [{"types": list(answers.events)}] if answers.events else []
    yield from _key("sync.events.select", selectors)
    yield from _key("sync.events.metadata", list(answers.metadata))
    yield from _key("sync.events.unknown_user", Events().unknown_user, is_given=False)
    yield from _key("sync.events.money", {"price": "currency"}, is_given=False)


def _host(section: str, host: Server) -> Iterator[str]:
    if host.url is None:
        yield from _key(f"{section}.region", host.region)
    else:
        yield from _key(f"{section}.base_url", host.url)


def _table(head: str, comment: str = "") -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(comment, WIDTH, initial_indent="# ", subsequent_indent="# ")
    yield head


def _key(path: str, value: Any, *, is_given: bool = True) -> Iterator[str]:
    """Yield a setting with its meaning; ``is_given``: it is set, not shown only."""
    meaning = MEANINGS[path]
    yield from textwrap.wrap(
        meaning,
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield f"{'' if is_given else '#'}{path.rpartition('.')[2]} = {toml(value)}"


# --- TOML ---------------------------------------------------------------------------------


def toml(value: Any) -> str:
    """Return a value as TOML: a text, a number, a boolean, or lists and tables of them."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_bare(key)} = {toml(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, list | tuple):
        items = [toml(inner) for inner in value]
        line = f"[{', '.join(items)}]"
        if len(line) <= ONE_LINE or len(items) == 1:
            return line
        return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _bare(key: str) -> str:
    """Return a key as TOML spells it: plain where it can be."""
    is_plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_plain else toml(key)
