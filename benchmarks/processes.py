"""Figures of the kernel about a process: memory, CPU, threads, files and bytes written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds: the unit in which the kernel counts the CPU of a process."""


class Facts:
    """The figures of one process, from ``/proc``."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def resident_bytes(self) -> int:
        """Return the bytes of resident memory now."""
        return self._status("VmRSS") * 1024

    def most_resident_bytes(self) -> int:
        """Return the most bytes of resident memory since the process began."""
        return self._status("VmHWM") * 1024

    def threads(self) -> int:
        """Return the number of threads now."""
        return self._status("Threads")

    def files(self) -> int:
        """Return the number of open descriptors now, except sockets."""
        return sum(not target.startswith("socket:") for target in self._open())

    def sockets(self) -> int:
        """Return the number of open sockets now."""
        return sum(target.startswith("socket:") for target in self._open())

    def cpu_s(self) -> float:
        """Return the CPU seconds of all threads so far, time in the kernel included."""
        fields = (self._folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def written_bytes(self) -> int:
        """Return the bytes written to disk so far; bytes sent over sockets do not count.

        A file system in memory counts none. Then the result is the bytes passed to files, which is
        less than the pages that they change.
        """
        lines = (self._folder / "io").read_text(encoding="utf-8").splitlines()
        counted = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
        return counted["write_bytes"] or counted["wchar"]

    def _status(self, name: str) -> int:
        lines = (self._folder / "status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    def _open(self) -> Iterator[str]:
        for descriptor in (self._folder / "fd").iterdir():
            try:
                yield str(descriptor.readlink())
            except FileNotFoundError:
                continue  # closed since the listing


def split_cores() -> tuple[set[int], set[int]]:
    """Return the core for the measured process, and those for the rest; the same if only one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return set(cores[:1]), set(cores[1:] or cores)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this process, and its new children, on ``cores``; on any core if ``cores`` is empty."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
