"""Findings on this machine: the data directory, its disk, the ports. Nothing is changed.

A port is tried by binding it for an instant, without listening.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.commands.socket_units import (
    SOCKET_UNIT,
    UNIT_FOLDERS,
    listed_addresses,
    numeric,
)
from amplitude_intercom.engine.commands.terminal import size
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.settings_findings import addresses
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.sqlite.lock import rights_of_others
from amplitude_intercom.engine.spool.sqlite.snapshots import size_of
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME


def machine_findings(
    settings: Settings, *, running: bool, unit_folders: Sequence[Path] = UNIT_FOLDERS
) -> Iterator[Finding]:
    """Yield findings about this machine.

    ``running``: a daemon of these settings does run. ``unit_folders``: where systemd has its units.
    """
    of_folder = list(_data_dir(Path(settings.data_dir)))
    yield from of_folder
    if not running and not any(finding.level == "error" for finding in of_folder):
        yield from _disk(settings)
    held = listed_addresses(unit_folders)
    for key, address in addresses(settings):
        problem = _bind(*host_and_port(address))
        if problem == TAKEN and not running and numeric(address) in held:
            text = (
                f"{address} is in use, and `{SOCKET_UNIT}` lists it: if that is active, systemd"
                " holds the port for the service, which gets it at its start"
            )
            yield Finding("warning", key, text)
        elif problem and not (running and problem == TAKEN):
            yield Finding("error", key, f"{address} {problem}")


# --- files --------------------------------------------------------------------------------


def _data_dir(path: Path) -> Iterator[Finding]:
    there = _nearest(path)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # that of its folder is looked at
    except OSError as error:
        yield Finding("error", "data_dir", f"`{path}` cannot be used: {error.strerror}")
        return
    if not os.path.isdir(there):  # without an error where its own folder is closed to us
        yield Finding("error", "data_dir", f"`{there}` is no folder")
    elif not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        what = "cannot be written" if there == path else f"cannot be made: `{there}` is read-only"
        yield Finding("error", "data_dir", f"`{path}` {what} for user {os.geteuid()}")
    elif _keeps_no_files(there):
        text = f"`{path}` cannot be used: the file system of `{there}` keeps no files"
        yield Finding("error", "data_dir", text)
    elif there == path:
        yield from _rights(path)
    elif there != path.absolute().parent:
        text = f"`{path.parent}` does not exist; the first start makes it (is a disk mounted?)"
        yield Finding("warning", "data_dir", text)


def _keeps_no_files(folder: Path) -> bool:
    """Whether a file system has neither blocks nor files to give, as that of /proc."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return not disk.f_blocks and not disk.f_files


def _rights(path: Path) -> Iterator[Finding]:
    text, refused = rights_of_others(path)
    if text:
        yield Finding("error" if refused else "warning", "data_dir", text)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(
        (folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder)), path
    )


def _disk(settings: Settings) -> Iterator[Finding]:
    """Yield whether the disk is too small: the spool wants its reserve, and as much again free."""
    reserve_bytes = settings.spool.reserve_bytes
    folder = Path(settings.data_dir)
    missing_bytes = sum(
        max(0, reserve_bytes // 2 - size_of(f"{folder / FILE_NAME}{end}"))
        for end in ("-reserve", "-wal")
    )
    try:
        disk = os.statvfs(_nearest(folder))
    except OSError:
        return
    free, needed = disk.f_bavail * disk.f_frsize, missing_bytes + reserve_bytes
    if free < needed:
        text = (
            f"{size(needed)} are needed on the disk of `{folder}` (what is missing of the"
            f" reserve, and its size again), {size(free)} are free"
        )
        yield Finding("error", "spool.reserve_bytes", text)


# --- ports --------------------------------------------------------------------------------

TAKEN = "is in use by another program"


def _bind(host: str, port: int) -> str:
    """Return why an address cannot be listened on; empty: it can."""
    if not port:
        return ""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (socket.gaierror, UnicodeError):
        return "cannot be listened on: the host name cannot be resolved"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return TAKEN
        return f"cannot be listened on: {error.strerror}"
    return ""
