"""Files of events: found in folders, named for people, and known again."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

SUFFIXES: Final = frozenset({".json", ".jsonl", ".ndjson", ".gz", ".bz2", ".xz", ".zst", ".zip"})
"""Of files that are read in a folder; a file that is named itself is always read."""


# --- finding ------------------------------------------------------------------------------


def _fail(error: OSError) -> None:
    raise error


def find(paths: Iterable[str], fail: Callable[[OSError], None] = _fail) -> list[str]:
    """Return the files of these paths: folders are searched, ``-`` stays, once.

    In natural order, because Amplitude numbers the hours of an Export without leading zeros. An
    error within a folder goes to ``fail``; if that does not raise it, the entry is passed over.

    Raises:
        OSError: ``fail`` raises it by default: a folder, or an entry of it, cannot be read.
    """
    found: list[str] = []
    for path in paths:
        if path != "-" and os.path.isdir(path):
            found.extend(sorted(_inside(path, fail), key=natural_order))
        elif path != "-" or "-" not in found:
            found.append(path)
    return found


def _inside(folder: str, fail: Callable[[OSError], None]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    for within, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        here = os.stat(within)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not is_hidden(name):
                yield from _file(os.path.join(within, name), fail)


def _file(path: str, fail: Callable[[OSError], None]) -> Iterator[str]:
    """Yield a path where it is a file: a pipe or a socket in a folder might never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", path)
    except OSError as error:
        fail(error)
    else:
        yield path


def is_hidden(name: str) -> bool:
    """Whether a file holds no events: it is hidden, or S3's list of merged users (``-…``)."""
    return name.startswith((".", "-"))


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts the numbers in names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


_DIGITS: Final = re.compile(r"(\d{1,18})", re.ASCII)


def shown(path: str) -> str:
    """Return a path as text that can be stored and printed: a name may be any bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def size(paths: Sequence[str]) -> int | None:
    """Return the bytes of all these files, or None where one of them is a pipe, or gone."""
    try:
        found = [os.stat(path) for path in paths if path != "-"]
    except OSError:
        return None
    if len(found) < len(paths) or not all(stat.S_ISREG(status.st_mode) for status in found):
        return None
    return sum(status.st_size for status in found)


def identity(path: str) -> str:
    """Return the path, size and time of a file: the same as long as nothing changes it.

    Raises:
        OSError: it is not there.
    """
    found = os.stat(path)
    return f"{shown(os.path.abspath(path))} {found.st_size} {found.st_mtime_ns}"
