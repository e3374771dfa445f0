"""Text, cut into JSON values: objects over several lines or one behind the other, arrays, bodies.

Pure, and streamed: held are the event that is not finished yet, and ``LOOK_BACK`` bytes.

Rules
=====
1. Only brackets and texts are looked at, so a value that is cut off need not be JSON.
2. ``_open`` are the brackets that are open, of which ``_base`` stand around events. An event is all
   from the bracket that opens on this base to the one that closes it. An array whose first element
   is an object stands around events, and so does ``events`` of a request body.
3. A bracket closes the last one of its kind, and with it what was opened since; one without its
   like closes nothing.
4. An event is broken where a text goes over a line's end, or where an object begins at which no
   value can. It ends where the next begins: at the next line that is indented as its own first line
   was, or, where events do not begin lines, at the next object behind a line's end or a bracket.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from amplitude_intercom.transports.lines import Line, UnfinishedEvent

MAX_OPEN: Final = 1_000
"""Brackets inside one another; Amplitude takes 40 (HTTP V2 page)."""

LOOK_BACK: Final = 256
"""Bytes behind the scanner that stay at hand: what stands before a bracket, blanks included."""

MAX_BLANK: Final = 65_536
"""Blanks behind a bracket that may still begin an array of events."""

BETWEEN: Final = re.compile(rb"[\s,\x1e]*+")
"""What may stand between values; 0x1e begins each of them in a sequence (RFC 7464)."""

_FLAT: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
"""What neither opens nor closes anything, whole texts included."""

_TEXT: Final = re.compile(rb"(?:[^\"\\\n]++|\\[^\n])*+")
_REST_OF_LINE: Final = re.compile(rb"[^\n{]*+")
_SCALAR: Final = re.compile(rb'[^\s",\[\]{}]*+')
ARRAY: Final = re.compile(rb"\[\s*+([{\]])?")
"""How an array of events begins; a log line may begin with a bracket too."""

_EVENTS: Final = re.compile(rb'[{,]\s*+"events"\s*+:\s*+\Z')
_TYPE: Final = b'"event_type"'
_NEXT_OBJECT: Final = re.compile(
    rb"(?:[^\n}]++|[\n}]\s*+(?!\{|,\s*+\{))*+"  # blanks are looked at twice at most
    rb"[\n}]\s*+,?\s*+(?=\{)"
)
"""Up to the next object that may begin an event, where events do not begin lines."""

_OPENER: Final = {0x7D: b"{", 0x5D: b"["}


class ValueCutter:
    """Cuts a text of JSON values, and of arrays and request bodies around them, into events.

    Its numbers count events.
    """

    def __init__(self, max_bytes: int, number: int = 0) -> None:
        """``number``: of the last event, or line, before this text."""
        self._held = UnfinishedEvent(max_bytes)
        self._buffer = b""
        self._begin = 0  # of the event in the buffer, or of its rest
        self._at = 0  # scanned up to here
        self._open = bytearray()
        self._base = 0
        self._state: Callable[[], bool] = self._between
        self._indent: bytes | None = b""  # before this event on its line; None: something else
        self._behind_events = False
        self._is_event = False  # it has a type, so it is no request body, whatever else it has
        self._ended = False
        self._number = number
        self._found: list[Line] = []
        self.bodies = 0
        """Request bodies that were met."""

    def cut(self, text: bytes) -> list[Line]:
        """Return the events that end in this text."""
        self._buffer += text
        while self._state():
            pass
        self._forget()
        found, self._found = self._found, []
        return found

    def finish(self) -> list[Line]:
        """Return what is left when the text ends: nothing, where all is closed."""
        self._ended = True
        found = self.cut(b"")
        if not self.is_between:
            self._end_event(len(self._buffer))
        rest, self._found = self._found, []
        return found + rest

    @property
    def is_between(self) -> bool:
        """Whether no event is begun."""
        return self._state == self._between

    @property
    def is_broken(self) -> bool:
        """Whether an event is begun that is no JSON."""
        return self._state == self._in_broken

    @property
    def problem(self) -> str:
        """What is not as it should be, once all is read."""
        return "damaged: its JSON ends too early" if self._open else ""

    # --- states: each returns whether it came further ---------------------------------------

    def _between(self) -> bool:
        begin = self._skip_blanks()
        if begin == len(self._buffer):
            return False
        char = self._buffer[begin : begin + 1]
        if not self._base:
            return self._begin_value(begin, char)
        if char == b"]":
            self._at = begin + 1
            self._close(0x5D)
            self._leave()
        elif char in (b"{", b"["):
            self._begin_event(begin, self._inside, char)
        else:
            self._begin_event(begin, self._in_text if char == b'"' else self._in_scalar)
        return True

    def _skip_blanks(self) -> int:
        end = match_end(BETWEEN, self._buffer, self._at)
        _, line_end, indent = self._buffer[self._at : end].rpartition(b"\n")
        if line_end:
            self._indent = indent
        elif self._indent is not None:
            self._indent = self._indent + indent if end - self._at < LOOK_BACK else None
        self._at = end
        return end

    def _begin_value(self, begin: int, char: bytes) -> bool:
        """Begin an event, an array of events, or a line of something else."""
        if char == b"{":
            self._begin_event(begin, self._inside, char)
            return True
        array = ARRAY.match(self._buffer, begin)
        if array and not array[1] and not self._ended and self._may_go_on(array):
            return False
        if array and array[1]:
            self._open += b"["
            self._base, self._at, self._indent = 1, begin + 1, None
        else:
            self._begin_event(begin, self._in_line)
        return True

    def _may_go_on(self, array: re.Match[bytes]) -> bool:
        return array.end() == len(self._buffer) and array.end() - array.start() <= MAX_BLANK

    def _begin_event(self, begin: int, state: Callable[[], bool], opener: bytes = b"") -> None:
        self._open += opener
        self._begin = begin
        self._at = begin + bool(opener or state == self._in_text)
        self._state = state

    def _inside(self) -> bool:
        end = self._at = match_end(_FLAT, self._buffer, self._at)
        if end == len(self._buffer):
            return False
        char = self._buffer[end]
        if char in _OPENER:
            self._at = end + 1
            leaves = self._close(char)
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
            self._held.take()
            self._state = self._between
        elif len(self._open) >= MAX_OPEN or not self._may_begin(before):
            self._break(at, opener)
            return
        self._open.append(opener)
        self._at = at + 1

    def _is_body(self, before: bytes) -> bool:
        """Whether the events of a request body begin here."""
        if len(self._open) > 1 or self._base or self._behind_events or self._is_event:
            return False
        if not _EVENTS.search(before):
            return False
        self._is_event = _TYPE in self._held.text + self._buffer[self._begin : self._at]
        return not self._is_event

    def _may_begin(self, before: bytes) -> bool:
        """Whether a value may stand here: in an object, behind a colon only."""
        last = before.rstrip()[-1:]
        return self._open[-1:] != b"{" or last in (b":", b"")

    def _break(self, at: int, opener: int) -> None:
        """Go on with the next event; it begins right here where events do not begin lines."""
        self._at, self._state = at, self._in_broken
        if self._indent is None and opener == 0x7B:
            self._end_broken(at)

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
        if self._indent is None:
            found = _NEXT_OBJECT.match(self._buffer, self._at)
            next_at = found.end() if found else -1
        else:
            at = max(self._begin, self._at - 1 - len(self._indent))
            line_at = self._buffer.find(b"\n" + self._indent + b"{", at)
            next_at = line_at + 1 + len(self._indent) if line_at >= 0 else -1
        if next_at < 0:
            self._at = max(self._at, len(self._buffer) - LOOK_BACK)
            return False
        self._end_broken(next_at)
        return True

    def _end_broken(self, end: int) -> None:
        indent, self._at = self._indent, end
        del self._open[self._base :]
        self._end_event(end)
        self._indent = indent

    def _in_line(self) -> bool:
        return self._in_other(_REST_OF_LINE)

    def _in_scalar(self) -> bool:
        return self._in_other(_SCALAR)

    def _in_other(self, pattern: re.Pattern[bytes]) -> bool:
        """Follow what is neither an object nor an array."""
        end = self._at = match_end(pattern, self._buffer, self._at)
        if end == len(self._buffer):
            return False
        self._at = max(end, self._begin + 1)  # a bracket that closes nothing
        self._end_event(self._at)
        return True

    # --- events ---------------------------------------------------------------------------

    def _close(self, char: int) -> bool:
        """Return whether that closes what stands around the events."""
        last = self._open.rfind(_OPENER[char])
        if last >= 0:
            del self._open[last:]
        return 0 <= last < self._base

    def _leave(self) -> None:
        """Go on behind an array of events; the rest of a request body is passed over."""
        self._base = 0
        if self._open:
            self._behind_events = True
            self._begin_event(self._at, self._inside)

    def _end_event(self, end: int) -> None:
        self._held.add(self._buffer[self._begin : end])
        text, digest = self._held.take()
        text = text.strip()
        if text and not self._behind_events:
            self._number += 1
            self._found.append(Line(self._number, text, not digest, 0, digest))
        if not self._open:
            self._behind_events = False
        self._begin, self._indent, self._is_event = end, None, False
        self._state = self._between

    def _forget(self) -> None:
        """Hold of the event what has been scanned, and drop what has been cut off."""
        keep = self._at
        if not self.is_between:
            keep = max(self._begin, self._at - LOOK_BACK)
            self._held.add(self._buffer[self._begin : keep])
        self._buffer = self._buffer[keep:]
        self._at -= keep
        self._begin = 0


def match_end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Return where a pattern that matches anything ends."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
