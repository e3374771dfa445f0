"""The events of one file, read at once by a blocking generator."""

from __future__ import annotations

from collections.abc import Iterator

from amplitude_intercom.transports.errors import BadFile
from amplitude_intercom.transports.files import bad_file, read
from amplitude_intercom.transports.lines import Line
from amplitude_intercom.transports.shapes import Cutter

# --- events -------------------------------------------------------------------------------


def read_lines(path: str, max_bytes: int) -> Iterator[Line]:
    """Yield a file's events, each of at most ``max_bytes``; blocks.

    Raises:
        OSError: it cannot be read.
        BadFile: a part of it cannot be read; all readable events have been yielded before.
    """
    bad: BadFile | None = None
    cutter = Cutter(max_bytes)
    for member, text, _, problem in read(path):
        yield from cutter.cut(text) if text else cutter.finish()
        if text and not (cutter.refused and not member):
            continue
        if problem or cutter.problem:
            bad = bad or bad_file(path, member, problem or cutter.problem)
        if text:
            break
        cutter = Cutter(max_bytes)
    if bad:
        raise bad
