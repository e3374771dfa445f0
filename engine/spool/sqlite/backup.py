"""A copy of a spool, consistent as of one moment, while somebody may be writing it."""

from __future__ import annotations

import os
from pathlib import Path

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.sqlite import examine
from amplitude_intercom.engine.spool.sqlite.reading import look_at
from amplitude_intercom.transports.reasons import RefusalReason


def backup(spool: Path, target: Path) -> int:
    """Write a spool to a file that is not there yet; return its size in bytes.

    The copy is checked before it has its name, and it is on disk when this returns.

    Raises:
        SpoolError: the spool cannot be read, or is damaged.
        OSError: the copy cannot be written, or is there already.
    """
    part = target.with_name(f"{target.name}.part")
    if target.exists():
        raise FileExistsError(17, "it is there already", str(target))
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        look_at(spool, lambda db: db.execute("VACUUM INTO ?", (str(part),)).fetchall())
        if damage := examine.findings(part):
            first = f"{damage[0].table} {damage[0].key}: {damage[0].problem}"
            raise SpoolError(RefusalReason.SPOOL_FAILING, f"{spool}: {first}")
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return target.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
