"""Batches of the events that are cut from a text, within a period of time. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from amplitude_intercom.transports.amplitude import BadEvent, Head, Time
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.amplitude_times import parse_time
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.lines import FilePosition, Line, PlainLines
from amplitude_intercom.transports.shapes import Cutter

SLICE_BYTES: Final = 32_768
"""Text that is cut at once where lines are decoded: some milliseconds, whatever it holds."""


def decode_line(line: Line, max_bytes: int) -> tuple[Head | BadEvent, bytes]:
    """Return a line's head and its bytes, mended where that helps."""
    if not line.whole:
        longer = f"longer than {max_bytes} bytes"
        return BadEvent("too_large", "", longer, digest=line.digest), line.text
    return read_head(line.text)


class _ClientTime(msgspec.Struct, gc=False):
    client_event_time: Time | None = None


_client_time = msgspec.json.Decoder(_ClientTime)


def time_of(head: Head, raw: bytes) -> int | None:
    """Return an event's own time in Unix milliseconds, as delivery reads it, or None without one.

    Raises:
        ValueError: its time cannot be read.
    """
    written = head.written_time
    if written is None:
        written = _client_time.decode(raw).client_event_time
    return None if written is None else parse_time(written)


class Period(msgspec.Struct, frozen=True):
    """A period of event times in Unix milliseconds, from ``since_ms`` to before ``until_ms``."""

    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether any event can lie outside."""
        return self.since_ms is not None or self.until_ms is not None

    def includes(self, head: Head | BadEvent, raw: bytes) -> bool:
        """Whether an event lies within; an event without a readable time does."""
        try:
            time_ms = None if isinstance(head, BadEvent) else time_of(head, raw)
        except (ValueError, msgspec.MsgspecError):
            time_ms = None
        if time_ms is None:
            return True
        return (self.since_ms is None or time_ms >= self.since_ms) and (
            self.until_ms is None or time_ms < self.until_ms
        )


class CutBatch(msgspec.Struct, frozen=True):
    """A batch, the position behind it, and the number of its events outside the period."""

    batch: Batch
    position: FilePosition
    passed_over: int = 0


class BatchCutter:
    """Makes batches for one sync of the text of files, with at most ``batch_lines`` events."""

    def __init__(self, sync: str | None, max_bytes: int, batch_lines: int, period: Period) -> None:
        """``max_bytes``: of one event."""
        self._sync = sync
        self._max_bytes = max_bytes
        self._batch_lines = batch_lines
        self._period = period

    def cut(
        self, cutter: Cutter, text: bytes, origin: str, member: str
    ) -> Iterator[CutBatch | None]:
        """Yield the batches that end in a text; an empty text is the end of all.

        None is yielded where other tasks should have a turn. Lines that are decoded are cut in
        slices: a few kilobytes can hold thousands of values.
        """
        # The fast path leaves decoding to the engine; a period needs the time of every event.
        plain = cutter.cut_plain(text) if text and not self._period.is_bounded else None
        if plain is not None:
            yield from self._plain_batches(plain, origin, member)
            return
        lines = [] if text else cutter.finish()
        for at in range(0, len(text), SLICE_BYTES):
            lines += cutter.cut(text[at : at + SLICE_BYTES])
            full = len(lines) - len(lines) % self._batch_lines
            yield from self._batches(lines[:full], origin, member)
            del lines[:full]
            yield None
        yield from self._batches(lines, origin, member)

    def _plain_batches(self, plain: PlainLines, origin: str, member: str) -> Iterator[CutBatch]:
        """Yield batches without heads: the engine decodes the fields that it needs."""
        numbers, end = range(plain.first, plain.first + len(plain.texts)), plain.begin
        for start in range(0, len(plain.texts), self._batch_lines):
            part = slice(start, start + self._batch_lines)
            end += plain.length(part)
            position = FilePosition(member, numbers[part][-1], end)
            yield CutBatch(self._batch(None, plain.texts[part], numbers[part], origin), position)

    def _batches(self, lines: Sequence[Line], origin: str, member: str) -> Iterator[CutBatch]:
        for start in range(0, len(lines), self._batch_lines):
            some = lines[start : start + self._batch_lines]
            last = some[-1]
            position = FilePosition(member, last.number if last.end else 0, last.end)
            decoded = [(line.number, *decode_line(line, self._max_bytes)) for line in some]
            if self._period.is_bounded:
                decoded = [line for line in decoded if self._period.includes(*line[1:])]
            numbers = [number for number, _, _ in decoded]
            heads, raws = [head for _, head, _ in decoded], [raw for _, _, raw in decoded]
            batch = self._batch(heads, raws, numbers, origin)
            yield CutBatch(batch, position, len(some) - len(decoded))

    def _batch(
        self,
        heads: Sequence[Head | BadEvent] | None,
        raws: Sequence[bytes],
        numbers: Sequence[int],
        origin: str,
    ) -> Batch:
        return Batch(heads, raws, sync=self._sync, derive_ids=True, origin=origin, lines=numbers)
