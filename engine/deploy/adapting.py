"""A settings file made fit for another place to run: the fewest edits of its text.

An installation decides the folders, the addresses and the form of the secrets. They are changed in
the text itself, so that comments and order stay. The text is read again afterwards and must say
exactly the intended settings. If it does not, the message names the lines to write.
"""

from __future__ import annotations

import copy
import ipaddress
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Admin, Settings

Table = dict[str, Any]
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - a container's own network


class Installation(msgspec.Struct, frozen=True):
    """The settings that an installation decides."""

    data_dir: str
    secrets_in_files: bool = False
    """Whether secrets are files beside the settings (``file:NAME``), else ``env:NAME``."""
    has_own_network: bool = True
    """Whether it has addresses of its own, as a container has: those of this machine are not there.

    Clients and health checks reach it by these.
    """
    most_drain_s: float | None = None


class Adapted(msgspec.Struct, frozen=True):
    """A settings text that fits, the names of its secrets (files or variables), and its changes."""

    text: str
    secrets: tuple[str, ...]
    changes: tuple[str, ...]


class _Edit(msgspec.Struct, frozen=True):
    """A new value of a key; ``section`` is empty for a key of the top."""

    section: str
    key: str
    value: str | float

    @property
    def line(self) -> str:
        value = f'"{self.value}"' if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.key} = {value}"

    def __str__(self) -> str:
        return f"[{self.section}] {self.line}" if self.section else self.line


def settings_of(text: str) -> Settings:
    """Return the settings that a text means; its secrets are not fetched, and stand for themselves.

    Raises:
        SettingsError: it is no TOML, or something in it cannot be used.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"not TOML: {error}") from None
    stand_ins = {name: f"secret-{n}" for n, name in enumerate(_references(table))}
    return from_table(_renamed(table, stand_ins))


def adapted(text: str, installation: Installation) -> Adapted:
    """Return a settings text as an installation needs it.

    Raises:
        SettingsError: it is no TOML, no settings, has a token spelled out, or cannot be edited.
    """
    before = settings_of(text)
    table = tomllib.loads(text)
    _refuse_spelled_out(table)
    edits = list(_edits(table, before, installation))
    wanted = copy.deepcopy(table)
    for edit in edits:
        text = _with_edit(text, edit)
        target = wanted.setdefault(edit.section, {}) if edit.section else wanted
        target[edit.key] = edit.value
    renames = dict(_renames(_references(wanted), in_files=installation.secrets_in_files))
    wanted = _renamed(wanted, renames)
    text = _QUOTED.sub(lambda found: _requoted(found, renames), text)
    if not _says(text, wanted):
        lines = [*map(str, edits), *(f"{new} for {old}" for old, new in renames.items())]
        raise SettingsError(f"the file cannot be edited; write into it: {', '.join(lines)}")
    changes = (*map(str, edits), *(f"{old} is {new}" for old, new in renames.items() if old != new))
    secrets = dict.fromkeys(reference.partition(":")[2] for reference in _references(wanted))
    return Adapted(text, tuple(secrets), changes)


def _says(text: str, wanted: Table) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


# --- keys ---------------------------------------------------------------------------------


def _edits(table: Table, settings: Settings, installation: Installation) -> Iterator[_Edit]:
    if table.get("data_dir") != installation.data_dir:
        yield _Edit("", "data_dir", installation.data_dir)
    most_s = installation.most_drain_s
    if most_s is not None and settings.drain_deadline_s > most_s:
        yield _Edit("", "drain_deadline_s", most_s)
    if installation.has_own_network:
        admin = settings.admin or Admin()
        if settings.http is not None:
            _refuse_one_port(settings.http.listen, admin.listen)
            yield from _everywhere("http", settings.http.listen)
        yield from _everywhere("admin", admin.listen)
        if admin.token is None:
            yield _Edit("admin", "token", "env:ADMIN_TOKEN")


def _everywhere(section: str, listen: str) -> Iterator[_Edit]:
    """Yield all addresses of the installation, where the settings name one of another place."""
    host, port = host_and_port(listen)
    try:
        is_everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        is_everywhere = False
    if not is_everywhere:
        yield _Edit(section, "listen", f"{EVERYWHERE}:{port}")


def _refuse_one_port(http: str, admin: str) -> None:
    """Refuse two servers that differ in their hosts alone.

    Raises:
        SettingsError: they have one port.
    """
    port = host_and_port(http)[1]
    if port and port == host_and_port(admin)[1]:
        raise SettingsError(
            f"admin.listen: port {port} is that of http.listen too; both servers listen on all"
            " addresses there, so each needs a port of its own"
        )


def _with_edit(text: str, edit: _Edit) -> str:
    """Return a text with a key set: its line changed or switched on, or a line behind its table's.

    A key that is switched off stands behind a ``#`` without a space.
    """
    lines = text.rstrip("\n").split("\n")  # `splitlines` splits values, too, as at U+0085
    keys = _keys(lines, edit.section)
    if keys is None:
        return text.rstrip("\n") + f"\n\n[{edit.section}]\n{edit.line}\n"
    value = r"""("[^"]*"|'[^']*'|[^\s#]+)(?P<rest>.*)"""
    for sign in ("", "#"):
        key = re.compile(rf"\s*{sign}{re.escape(edit.key)}\s*=\s*{value}")
        for index in keys:
            if found := key.fullmatch(lines[index]):
                lines[index] = edit.line + found["rest"]
                return "\n".join(lines) + "\n"
    said = [index for index in keys if re.match(r"\s*[^#\s]", lines[index])]
    lines.insert(said[-1] + 1 if said else keys.start, edit.line)
    return "\n".join(lines) + "\n"


def _keys(lines: list[str], section: str) -> range | None:
    """Return which lines a table's keys are among; None: there is no such table.

    The top's begin behind the comment that heads the file.
    """
    heads = [index for index, line in enumerate(lines) if line.lstrip().startswith("[")]
    heads.append(len(lines))
    if not section:
        comment = next((n for n, line in enumerate(lines) if not line.startswith("#")), 0)
        return range(min(comment, heads[0]), heads[0])
    head = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]")
    for index, following in pairwise(heads):
        if head.match(lines[index]):
            return range(index + 1, following)
    return None


# --- secrets ------------------------------------------------------------------------------


def _references(value: Any) -> list[str]:
    """Return the ``env:NAME`` and ``file:PATH`` of a table, in order, each once."""
    if isinstance(value, dict):
        found = [reference for inner in value.values() for reference in _references(inner)]
    elif isinstance(value, list):
        found = [reference for inner in value for reference in _references(inner)]
    else:
        is_one = isinstance(value, str) and value.startswith(("env:", "file:"))
        found = [value] if is_one else []
    return list(dict.fromkeys(found))


def _renames(references: list[str], *, in_files: bool) -> Iterator[tuple[str, str]]:
    """Yield each reference with the one that the installation has for it."""
    taken: set[str] = set()
    for reference in references:
        wanted, number = _name(reference, in_files=in_files), 1
        name = wanted
        while name in taken:
            number += 1
            name = f"{wanted}{'-' if in_files else '_'}{number}"
        taken.add(name)
        yield reference, f"{'file' if in_files else 'env'}:{name}"


def _name(reference: str, *, in_files: bool) -> str:
    """Return the name of a secret: a file's without its folder, or a variable's."""
    scheme, _, rest = reference.partition(":")
    if scheme == "env" and not in_files and _VARIABLE.fullmatch(rest):
        return rest
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", PurePath(rest).name).strip("-.") or "secret"
    if in_files:
        return plain if scheme == "file" else plain.lower()
    name = re.sub(r"[^A-Za-z0-9]+", "_", plain).upper()
    return f"SECRET_{name}" if name[0].isdigit() else name


_VARIABLE: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")
"""A name that each shell, Docker and Kubernetes take for a variable."""

_QUOTED: Final = re.compile(r"""(?P<quote>["'])(?P<inside>(?:env|file):[^"'\n]*)(?P=quote)""")


def _requoted(found: re.Match[str], renames: dict[str, str]) -> str:
    new = renames.get(found["inside"])
    return found[0] if new is None else f'"{new}"'


def _renamed(value: Any, renames: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(inner, renames) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, renames) for inner in value]
    return renames.get(value, value) if isinstance(value, str) else value


def _refuse_spelled_out(table: Table) -> None:
    """Refuse tokens in the text: it goes where others may read it.

    Raises:
        SettingsError: there is one.
    """
    syncs = [sync for sync in table.get("sync", []) if isinstance(sync, dict)]
    held = [(f"sync[{n}].intercom", s.get("intercom"), "access_token") for n, s in enumerate(syncs)]
    held += [("admin", table.get("admin"), key) for key in ("token", "read_token")]
    held.append(("export", table.get("export"), "secret_key"))
    for where, section, key in held:
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and not value.startswith(("env:", "file:")):
            raise SettingsError(
                f'{where}.{key}: it is spelled out; write "env:NAME" or "file:PATH"'
            )
