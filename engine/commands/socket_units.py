"""The addresses that an installed socket unit of ours lists: systemd holds them for the service.

That the unit is installed does not say that it is active.
"""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.addresses import host_and_port

SOCKET_UNIT: Final = "amplitude-intercom.socket"
UNIT_FOLDERS: Final = tuple(
    Path(folder, "systemd/system") for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)
"""Where systemd looks for units, the first one first (systemd.unit(5))."""

MAX_UNIT_BYTES: Final = 65_536

Numeric = tuple[str, int]
"""A host's address in its one spelling, and a port."""


def listed_addresses(folders: Sequence[Path]) -> set[Numeric]:
    """Return the addresses that the unit and its drop-ins list; unreadable files list none."""
    found: set[Numeric] = set()
    for path in _files(folders):
        for line in _lines(path):
            key, sign, value = (part.strip() for part in line.partition("="))
            if key != "ListenStream" or not sign:
                continue
            if not value:
                found.clear()  # an empty one takes those before it back
            elif (address := numeric(value)) is not None:
                found.add(address)
    return found


def numeric(address: str) -> Numeric | None:
    """Return an address in its one spelling; None where its host is a name, or it is a path."""
    try:
        host, port = host_and_port(address)
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        return None


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the unit that counts, and its drop-ins by their names; the first of a name counts."""
    units = (folder / SOCKET_UNIT for folder in folders)
    yield from [unit for unit in units if _is_regular(unit)][:1]
    added: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob(f"{SOCKET_UNIT}.d/*.conf"):
            added.setdefault(path.name, path)
    for name in sorted(added):
        yield added[name]


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _lines(path: Path) -> list[str]:
    if not _is_regular(path):
        return []
    try:
        with path.open("rb") as file:
            return file.read(MAX_UNIT_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return []
