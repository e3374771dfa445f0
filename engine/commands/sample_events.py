"""The events of a sample file, as ``forward`` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from amplitude_intercom.engine.findings.sample_findings import SampleEvent
from amplitude_intercom.transports import file_events
from amplitude_intercom.transports.line_batches import decode_line

MAX_SAMPLE: Final = 10_000
"""Events of a sample that are looked at."""


def read_events(path: str, max_bytes: int) -> Iterator[SampleEvent]:
    """Yield the numbered events of a file, or of standard input (``-``), as ``forward`` does.

    Raises:
        OSError: it cannot be read.
        BadFile: it is not whole, or holds no events; the events before that are yielded.
    """
    for line in file_events.read_lines(path, max_bytes):
        yield line.number, *decode_line(line, max_bytes)
