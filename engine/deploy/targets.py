"""The targets of a deployment, and their files, filled in from the settings."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.deploy.adapting import (
    Adapted,
    Installation,
    adapted,
    settings_of,
)
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports.own_version import own_version

SETTINGS_FILE: Final = "amplitude-intercom.toml"
FOLDER: Final = "/etc/amplitude-intercom"
"""Where the settings are in every installation."""

STATE: Final = "/var/lib/amplitude-intercom"
USER: Final = "10001"
AFTER_DRAIN_S: Final = 15
"""Seconds beyond the drain deadline until a process is killed: it closes its spool meanwhile."""

CONTAINER_DRAIN_S: Final = 7.0
"""Of the 10 s that `docker stop` leaves. After it come at most 0.2 s for the last clients and 1.0 s
for requests at work (``transports.sockets``). The rest is for the spool."""

HIDDEN: Final = ("/home", "/root", "/tmp", "/var/tmp", "/run/user")  # noqa: S108 - compared only
"""Folders that the unit does not let the daemon see."""

Files = dict[str, str]
"""Texts by file name."""


# --- systemd ------------------------------------------------------------------------------


def systemd(text: str) -> tuple[Files, Adapted]:
    """Return the unit, its socket, and the settings with secrets as files beside them."""
    made = adapted(text, Installation(STATE, secrets_in_files=True, has_own_network=False))
    settings = settings_of(made.text)
    listen = list(_numeric_addresses(settings))
    credentials = [SETTINGS_FILE, *made.secrets]
    unit = _filled(
        "amplitude-intercom.service",
        PROGRAM=_unit_word(_program()),
        CREDENTIALS=_lines(f"LoadCredential={name}:{FOLDER}/{name}" for name in credentials),
        SOCKETS="Sockets=amplitude-intercom.socket" if listen else "",
        DRAIN_S=f"{settings.drain_deadline_s:g}",
        STOP_S=str(stop_s(settings)),
    )
    found = {"amplitude-intercom.service": unit}
    if listen:
        sockets = _lines(_socket_lines(listen))
        found["amplitude-intercom.socket"] = _filled("amplitude-intercom.socket", LISTEN=sockets)
    return {**found, SETTINGS_FILE: made.text}, made


def _numeric_addresses(settings: Settings) -> Iterator[str]:
    """Yield the addresses that a socket unit can have: the daemon opens those with names itself."""
    for server in (settings.http, settings.admin):
        host, port = host_and_port(server.listen) if server is not None else ("", 0)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            continue
        if server is not None and port:
            yield server.listen


def _socket_lines(listen: Iterable[str]) -> Iterator[str]:
    """Yield the lines that open the same addresses as the daemon would without a socket unit."""
    hosts = []
    for address in listen:
        yield f"ListenStream={address}"
        hosts.append(ipaddress.ip_address(host_and_port(address)[0]))
    if any(host.version == 6 for host in hosts):
        yield "BindIPv6Only=ipv6-only"
    if not all(host.is_loopback or host.is_unspecified for host in hosts):
        yield "# The sockets are opened before the network has its addresses."
        yield "FreeBind=yes"


def _unit_word(path: str) -> str:
    """Return a program's path as one word of a unit: `%` begins a specifier, a blank ends it."""
    word = path.replace("%", "%%")
    return f'"{word}"' if re.search(r"[ ;]", word) else word


def _program() -> str:
    """Return the path of the installed command, or of one that a service can see and have.

    systemd takes no quotes, backslashes and control characters in it.
    """
    here = Path(sysconfig.get_path("scripts")) / "amplitude-intercom"
    is_seen = here.exists() and not any(here.is_relative_to(folder) for folder in HIDDEN)
    is_legal = not re.search(r"['\"\\\x00-\x1f\x7f]", str(here))
    return str(here) if is_seen and is_legal else "/opt/amplitude-intercom/bin/amplitude-intercom"


# --- container ----------------------------------------------------------------------------


def container(text: str) -> tuple[Files, Adapted]:
    """Return the container file, and the settings with secrets in the environment."""
    made = adapted(text, Installation(STATE, most_drain_s=CONTAINER_DRAIN_S))
    settings = settings_of(made.text)
    ports = _ports(settings)
    made_of = _filled(
        "Containerfile",
        **_facts(settings),
        PUBLISHED=" ".join(f"-p {_own(host)}:{port}:{port}" for host, port in ports.values()),
        EXPOSED=" ".join(port for _, port in ports.values()),
        HEALTH="{}:{}".format(_own(ports["admin"][0]), ports["admin"][1]),
        DATA_DIR=STATE,
        ENVIRONMENT=" ".join(f"-e {name}" for name in made.secrets),
    )
    return {"Containerfile": made_of, SETTINGS_FILE: made.text}, made


# --- Kubernetes ---------------------------------------------------------------------------


def kubernetes(text: str) -> tuple[Files, Adapted]:
    """Return the manifest, with the settings in it and secrets in the environment."""
    made = adapted(text, Installation(f"{STATE}/data"))
    settings = settings_of(made.text)
    ports = _ports(settings)
    environment = [
        f"- name: {name}\n  valueFrom: {{secretKeyRef: {{name: amplitude-intercom, key: {name}}}}}"
        for name in made.secrets
    ]
    manifest = _filled(
        "kubernetes.yaml",
        **_facts(settings),
        SERVICE_PORTS=_lines(
            f"    - {{name: {name}, port: {port}, targetPort: {name}}}"
            for name, (_, port) in ports.items()
        ),
        CONTAINER_PORTS=_lines(
            f"            - {{name: {name}, containerPort: {port}}}"
            for name, (_, port) in ports.items()
        ),
        LITERALS=" \\\n#     ".join(f"--from-literal={name}=…" for name in made.secrets),
        SETTINGS_TEXT=_block(made.text),
        SETTINGS_DIR=FOLDER,
        DIGEST=hashlib.sha256(made.text.encode()).hexdigest()[:16],
        STOP_S=str(stop_s(settings)),
        ENVIRONMENT=textwrap.indent("\n".join(environment), " " * 12),
        VOLUME=STATE,
        STORAGE=f"{storage_gib(settings)}Gi",
    )
    return {"kubernetes.yaml": manifest}, made


def _block(text: str) -> str:
    """Return a YAML scalar of a text: lines at column 4, or quoted where YAML would change them.

    YAML breaks lines at U+0085, too, for instance.
    """
    if _NOT_IN_BLOCKS.search(text):
        quoted = json.dumps(text, ensure_ascii=False)
        return _NOT_IN_BLOCKS.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
    lines = text.rstrip("\n").split("\n")
    return "\n".join(["|2", *(f"    {line}" if line else "" for line in lines)])


_NOT_IN_BLOCKS: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that TOML allows, and that a YAML block breaks at, drops or refuses."""


def storage_gib(settings: Settings) -> int:
    """Return the size of a volume for all that the spool may keep, and half as much again."""
    spool = settings.spool
    most = spool.max_bytes + spool.dedupe_max_bytes + spool.dead_letters_max_bytes
    return math.ceil((most * 1.5 + spool.reserve_bytes) / 2**30)


TARGETS: Final = {"systemd": systemd, "container": container, "kubernetes": kubernetes}
"""Each makes its files of a settings text. Raises ``SettingsError`` where that is impossible."""


# --- all of them --------------------------------------------------------------------------


def stop_s(settings: Settings) -> int:
    """Return the seconds that a stop may take."""
    return math.ceil(settings.drain_deadline_s) + AFTER_DRAIN_S


def _facts(settings: Settings) -> Mapping[str, str]:
    return {
        "DRAIN_S": f"{settings.drain_deadline_s:g}",
        "IMAGE": f"amplitude-intercom:{own_version()}",
        "USER": USER,
        "SETTINGS": f"{FOLDER}/{SETTINGS_FILE}",
    }


def _ports(settings: Settings) -> Mapping[str, tuple[str, str]]:
    """Return the open ports by the names of their servers, each with the host that it listens on.

    Raises:
        SettingsError: a port is another one at each start, so that no client can know it.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, server in (("http", settings.http), ("admin", settings.admin)):
        if server is None:
            continue
        host, port = host_and_port(server.listen)
        if not port:
            raise SettingsError(f"{name}.listen: port 0 is another one at each start; name one")
        found[name] = host, str(port)
    return found


def _own(host: str) -> str:
    """Return the loopback address, in a URL's spelling, by which a server on all is reached."""
    return "[::1]" if ":" in host else "127.0.0.1"


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(lines)


def _filled(name: str, **values: str) -> str:
    """Return a template with its ``@NAME@`` filled in; a line that is left empty by it goes.

    What is filled in stays as it is, even where it looks like a name to fill in.
    """
    lines = []
    for line in files(__package__).joinpath(name).read_text("utf-8").splitlines():
        filled = _NAME.sub(lambda found: values[found[1]], line)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"


_NAME: Final = re.compile(r"@([A-Z_]+)@")
