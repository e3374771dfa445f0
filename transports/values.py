"""Text, cut into JSON values: objects over several lines or one behind the other, arrays, bodies.

Pure, and streamed: it holds the event that is not finished yet, and ``LOOK_BACK`` bytes.

Rules
=====
1. Only brackets and strings are parsed, so a value that is cut off need not be JSON.
2. ``_open`` are the open brackets. The first ``_base`` of them stand around events. An event
   reaches from the bracket that opens on this base to the one that closes it. An array with an
   object as its first element stands around events; so does ``events`` of a request body.
3. A closing bracket closes the last open one of its kind and all that were opened since. Without an
   open one of its kind it closes nothing.
4. An event is broken where a string crosses the end of a line, or where an object begins in a place
   that allows no value. It ends where the next event begins: at the next line with the indentation
   of its own first line or, where events do not begin lines, at the next object behind the end of
   a line or a bracket.
5. ``_between``, ``_inside`` and ``_in_…`` are the states. Each returns whether it advanced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from amplitude_intercom.transports.lines import Line, UnfinishedEvent

MAX_OPEN: Final = 1_000
"""Most open brackets; Amplitude takes 40 (HTTP V2 page)."""

LOOK_BACK: Final = 256
"""Bytes before the scanner that are kept, to see the context of a bracket."""

MAX_BLANK: Final = 65_536
"""Most blanks behind a bracket that begins an array of events."""

BETWEEN: Final = re.compile(rb"[\s,\x1e]*+")
"""Separators of values; 0x1e begins each value of a sequence (RFC 7464)."""

_FLAT: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
"""Text without brackets outside of strings, whole strings included."""

_TEXT: Final = re.compile(rb"(?:[^\"\\\n]++|\\[^\n])*+")
_REST_OF_LINE: Final = re.compile(rb"[^\n{]*+")
_SCALAR: Final = re.compile(rb'[^\s",\[\]{}]*+')
ARRAY: Final = re.compile(rb"\[\s*+([{\]])?")
"""The beginning of an array of events; a log line may begin with a bracket too."""

_EVENTS: Final = re.compile(rb'[{,]\s*+"events"\s*+:\s*+\Z')
_TYPE: Final = b'"event_type"'
_NEXT_OBJECT: Final = re.compile(
    rb"(?:[^\n}]++|[\n}]\s*+(?!\{|,\s*+\{))*+"  # blanks are scanned twice at most
    rb"[\n}]\s*+,?\s*+(?=\{)"
)
"""Up to the next object that may begin an event, where events do not begin lines."""

_OPENER: Final = {0x7D: b"{", 0x5D: b"["}


class _FoundEvents:
    """The events that are finished, numbered, and the bytes of the one in progress."""

    def __init__(self, max_bytes: int, number: int) -> None:
        self.held = UnfinishedEvent(max_bytes)
        self._max = max_bytes
        self._number = number
        self._found: list[Line] = []

    def end(self, piece: bytes, *, counts: bool) -> None:
        """Finish the event in progress with its last piece; drop it where it does not count."""
        digest = b""
        if self.held.length or len(piece) > self._max:  # most events are in one piece
            self.held.add(piece)
            piece, digest = self.held.take()
        text = piece.strip()
        if text and counts:
            self._number += 1
            self._found.append(Line(self._number, text, not digest, 0, digest))

    def take(self) -> list[Line]:
        """Return the events that were finished since the last call."""
        found, self._found = self._found, []
        return found


class ValueCutter:
    """Cuts a text of JSON values, with arrays and request bodies around them, into events."""

    def __init__(self, max_bytes: int, number: int = 0) -> None:
        """``number``: of the last event, or line, before this text."""
        self._events = _FoundEvents(max_bytes, number)
        self._buffer = b""
        self._begin = 0  # of the event in the buffer, or of its rest
        self._at = 0  # scanned up to here
        self._open = bytearray()
        self._base = 0
        self._state: Callable[[], bool] = self._between
        self._rest = _REST_OF_LINE  # of a value that is neither an object nor an array
        self._indent: bytes | None = b""  # before this event on its line; None: other text
        self._behind_events = False
        self._is_event = False  # it has a type, so it is no request body, whatever else it has
        self._ended = False
        self.bodies = 0  # request bodies so far

    def cut(self, text: bytes) -> list[Line]:
        """Return the events that end in this text."""
        self._buffer += text
        while self._state():
            pass
        self._forget()
        return self._events.take()

    def finish(self) -> list[Line]:
        """Return the events that are left at the end of the text, unfinished ones included."""
        self._ended = True
        found = self.cut(b"")
        if not self.is_between:
            self._end_event(len(self._buffer))
        return found + self._events.take()

    @property
    def is_between(self) -> bool:
        """Whether no event is begun."""
        return self._state == self._between

    @property
    def is_broken(self) -> bool:
        """Whether the event in progress is not JSON."""
        return self._state == self._in_broken

    @property
    def problem(self) -> str:
        """The fault of the whole text, at its end."""
        return "damaged: its JSON ends too early" if self._open else ""

    def _between(self) -> bool:
        begin = self._skip_blanks()
        if begin == len(self._buffer):
            return False
        char = self._buffer[begin : begin + 1]
        if not self._base:
            return self._begin_value(begin, char)
        if char == b"]":
            self._at = begin + 1
            _close(self._open, 0x5D)
            self._leave()
        elif char in (b"{", b"["):
            self._begin_event(begin, self._inside, char)
        elif char == b'"':
            self._begin_event(begin, self._in_text)
            self._at += 1
        else:
            self._rest = _SCALAR
            self._begin_event(begin, self._in_other)
        return True

    def _skip_blanks(self) -> int:
        end = match_end(BETWEEN, self._buffer, self._at)
        self._indent = _indent_after(self._buffer[self._at : end], self._indent)
        self._at = end
        return end

    def _begin_value(self, begin: int, char: bytes) -> bool:
        """Begin an event, an array of events, or a line of other text."""
        if char == b"{":
            self._begin_event(begin, self._inside, char)
            return True
        array = ARRAY.match(self._buffer, begin)
        if array and array[1]:
            self._open += b"["
            self._base, self._at, self._indent = 1, begin + 1, None
        elif array and not self._ended and _may_go_on(array, len(self._buffer)):
            return False
        else:
            self._rest = _REST_OF_LINE
            self._begin_event(begin, self._in_other)
        return True

    def _begin_event(self, begin: int, state: Callable[[], bool], opener: bytes = b"") -> None:
        self._open += opener
        self._begin, self._at = begin, begin + len(opener)
        self._state = state

    def _inside(self) -> bool:
        end = self._at = match_end(_FLAT, self._buffer, self._at)
        if end == len(self._buffer):
            return False
        char = self._buffer[end]
        if char in _OPENER:
            self._at = end + 1
            leaves = 0 <= _close(self._open, char) < self._base
            if len(self._open) <= self._base:
                self._end_event(self._at)
            if leaves:
                self._leave()
        elif char == 0x22:
            self._at = end + 1
            self._state = self._in_text
        else:
            self._nest(end, char)
        return True

    def _nest(self, at: int, opener: int) -> None:
        before = self._buffer[max(self._begin, at - LOOK_BACK) : at]
        if opener == 0x5B and self._is_body(before):
            self.bodies += 1
            self._base, self._indent = 2, None
            self._events.held.take()
            self._state = self._between
        elif len(self._open) >= MAX_OPEN or not _may_begin(self._open, before):
            # Go on with the next event. It begins right here where events do not begin lines.
            self._at, self._state = at, self._in_broken
            if self._indent is None and opener == 0x7B:
                self._end_broken(at)
            return
        self._open.append(opener)
        self._at = at + 1

    def _is_body(self, before: bytes) -> bool:
        """Whether the events of a request body begin here."""
        is_elsewhere = self._base or self._behind_events or self._is_event
        if len(self._open) > 1 or is_elsewhere or not _EVENTS.search(before):
            return False
        # An event may have a property ``events`` of its own; a request body has no event type.
        self._is_event = _TYPE in self._events.held.text + self._buffer[self._begin : self._at]
        return not self._is_event

    def _in_text(self) -> bool:
        end = self._at = match_end(_TEXT, self._buffer, self._at)
        if end >= len(self._buffer) - (self._buffer[end : end + 1] == b"\\"):
            return False
        if self._buffer[end] != 0x22:
            self._state = self._in_broken
            return True
        self._at = end + 1
        self._state = self._inside
        if len(self._open) <= self._base:
            self._end_event(self._at)
        return True

    def _in_broken(self) -> bool:
        next_at = _next_event(self._buffer, self._begin, self._at, self._indent)
        if next_at < 0:
            self._at = max(self._at, len(self._buffer) - LOOK_BACK)
            return False
        self._end_broken(next_at)
        return True

    def _end_broken(self, end: int) -> None:
        indent, self._at = self._indent, end
        del self._open[self._base :]
        self._end_event(end)
        self._indent = indent  # the next event begins on a line of its own, like this one

    def _in_other(self) -> bool:
        end = self._at = match_end(self._rest, self._buffer, self._at)
        if end == len(self._buffer):
            return False
        self._at = max(end, self._begin + 1)  # advances over a bracket that closes nothing
        self._end_event(self._at)
        return True

    def _leave(self) -> None:
        """Go on behind an array of events; the rest of a request body is passed over."""
        self._base = 0
        if self._open:
            self._behind_events = True
            self._begin_event(self._at, self._inside)

    def _end_event(self, end: int) -> None:
        self._events.end(self._buffer[self._begin : end], counts=not self._behind_events)
        if not self._open:
            self._behind_events = False
        self._begin, self._indent, self._is_event = end, None, False
        self._state = self._between

    def _forget(self) -> None:
        """Move the scanned part of the event out of the buffer, and drop finished events."""
        keep = self._at
        if not self.is_between:
            keep = max(self._begin, self._at - LOOK_BACK)
            self._events.held.add(self._buffer[self._begin : keep])
        self._buffer = self._buffer[keep:]
        self._at -= keep
        self._begin = 0


def _indent_after(blanks: bytes, indent: bytes | None) -> bytes | None:
    """Return the indentation behind some blanks; None where other text is before the event."""
    _, line_end, last = blanks.rpartition(b"\n")
    if line_end:
        return last
    # A chunk may end within the indentation, so blanks continue it; a long run is none.
    return indent + last if indent is not None and len(blanks) < LOOK_BACK else None


def _close(opened: bytearray, char: int) -> int:
    """Close the last open bracket of a kind; return the number of those before it, or -1."""
    last = opened.rfind(_OPENER[char])
    if last >= 0:
        del opened[last:]
    return last


def _may_begin(opened: bytearray, before: bytes) -> bool:
    """Whether a value may begin here: in an object, only behind a colon."""
    last = before.rstrip()[-1:]
    return opened[-1:] != b"{" or last in (b":", b"")


def _may_go_on(array: re.Match[bytes], length: int) -> bool:
    """Whether more text decides if an array holds events: only blanks came behind its bracket."""
    return array.end() == length and array.end() - array.start() <= MAX_BLANK


def _next_event(buffer: bytes, begin: int, at: int, indent: bytes | None) -> int:
    """Return the beginning of the event behind a broken one, or -1 while none is there."""
    if indent is None:
        found = _NEXT_OBJECT.match(buffer, at)
        return found.end() if found else -1
    line_at = buffer.find(b"\n" + indent + b"{", max(begin, at - 1 - len(indent)))
    return line_at + 1 + len(indent) if line_at >= 0 else -1


def match_end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Return the end of a match; ``pattern`` matches anything."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
