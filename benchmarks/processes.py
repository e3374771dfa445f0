"""What the kernel says of a process: memory, CPU, threads, files and bytes written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel counts the CPU of a process in these."""


class Facts:
    """A process as ``/proc`` shows it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def resident_bytes(self) -> int:
        """Bytes of memory that are resident now."""
        return self._status("VmRSS") * 1024

    def most_resident_bytes(self) -> int:
        """Bytes of memory that were resident at most, since it began."""
        return self._status("VmHWM") * 1024

    def threads(self) -> int:
        """Threads that run now."""
        return self._status("Threads")

    def files(self) -> int:
        """Files, pipes and the like that are open now; sockets are not counted."""
        return sum(not target.startswith("socket:") for target in self._open())

    def sockets(self) -> int:
        """Sockets that are open now."""
        return sum(target.startswith("socket:") for target in self._open())

    def cpu_s(self) -> float:
        """Seconds of CPU that all its threads took, in the kernel too."""
        fields = (self._folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def written_bytes(self) -> int:
        """Bytes that it had written to disk.

        A file system in memory counts none: then those that it handed to files, which is less than
        the pages that they make dirty. What goes to sockets is in neither.
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
                continue  # closed meanwhile


def split_cores() -> tuple[set[int], set[int]]:
    """Return the core of what is measured, and those of the rest; equal where there is but one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return set(cores[:1]), set(cores[1:] or cores)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Run on these cores, as does what is started inside; on any where none can be chosen."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
