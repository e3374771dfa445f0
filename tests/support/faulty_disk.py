"""A disk that fails on request, for real processes: see ``faulty_disk.c``, which is compiled here.

Where there is no C compiler, or no way to preload a library, the tests that need it are skipped.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FIELDS = (
    *("fsync_errno", "fsync_failures", "write_errno", "write_failures", "fsync_delay_ms"),
    *("quota_on", "free_bytes", "fsyncs", "keep", "stat_delay_ms"),
)
SECTOR_BYTES = 512
MARKS = (".durable", ".written", ".named")


@functools.cache
def library() -> str:
    """Compile the library; skips the test where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    built = Path(tempfile.mkdtemp(prefix="faulty-disk-")) / "faulty_disk.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", built, source, "-ldl", "-lpthread"],
        check=True,
    )
    return str(built)


class FaultyDisk:
    """The disk below one folder, as a process sees it that is started with ``env``."""

    def __init__(self, folder: Path, control: Path, **fields: int) -> None:
        """``folder`` is watched; ``control`` is a file outside of it. ``fields``: see ``set``."""
        self.folder = folder.resolve()
        control.write_bytes(bytes(8 * len(FIELDS)))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(FIELDS))
        self.env = {
            "LD_PRELOAD": library(),
            "FAULTY_DIR": str(self.folder),
            "FAULTY_CONTROL": str(control),
        }
        self.set(**fields)

    def set(self, **fields: int) -> None:
        """Change what the disk does, at once. ``…_failures`` -1: from now on."""
        for name, value in fields.items():
            struct.pack_into("q", self._map, 8 * FIELDS.index(name), value)

    def get(self, field: str) -> int:
        value: int = struct.unpack_from("q", self._map, 8 * FIELDS.index(field))[0]
        return value


def after_power_cut(folder: Path, to: Path, chance: random.Random) -> None:
    """Put together in ``to`` what a power cut leaves of ``folder``, ready for the next one.

    What was fsynced is there; of the rest, any sector may be, whatever order it was written in.
    """
    to.mkdir(mode=0o700)
    for named in sorted(folder.rglob("*.named")):
        file = named.with_suffix("")
        there = bytearray(_read(Path(f"{file}.durable")))
        for offset, length, written in _records(_read(Path(f"{file}.written"))):
            survives = chance.choice(("no", "some", "all"))
            if length < 0:
                if survives == "all":
                    there[offset:] = bytes(max(0, offset - len(there)))
                continue
            for at in range(0, length, SECTOR_BYTES):
                if survives == "all" or (survives == "some" and chance.random() < 0.5):
                    sector = written[at : at + SECTOR_BYTES]
                    end = offset + at + len(sector)
                    there.extend(bytes(max(0, end - len(there))))
                    there[offset + at : end] = sector
        new = to / file.relative_to(folder)
        Path(f"{new}.durable").write_bytes(there)
        Path(f"{new}.named").touch()
        with new.open("wb") as copy:
            copy.write(there)
            copy.flush()
            os.fsync(copy.fileno())  # where this process itself has the faulty disk


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _records(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, length and bytes of what was written; the last may have been cut off."""
    at = 0
    while at + 16 <= len(log):
        offset, length = struct.unpack_from("qq", log, at)
        at += 16 + max(0, length)
        if at <= len(log):
            yield offset, length, log[at - max(0, length) : at]
