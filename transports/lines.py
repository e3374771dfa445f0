"""Text, cut into the events that it holds, however they are set in it. Pure, and streamed.

Shapes
======
1. **Lines**: one JSON value a line (NDJSON). The fast path: nobody looks into a line here. Only
   this shape can be entered in the middle.
2. **Values**: all else that is JSON: objects over several lines, or several on one; arrays of
   events; whole request bodies, ``{"api_key": …, "events": […]}``, of which the events are taken;
   and any of these one after the other. Commas between values do no harm.

``Cutter`` decides, by the first line that begins like an object or an array of them: one that is a
whole event is one of many lines. A line that is broken does not tell.

What is no JSON costs itself. In lines that is the line. In values an event is broken where a text
goes over a line's end, or where an object begins at which no value can; the next event begins at
the next line that is indented as its own first line was, or, where events do not begin lines, at
the next ``{``.

A text without any JSON object among its first lines or values is refused (``Cutter.problem``):
until the first of them comes, what comes is held back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec

from transports import kinds
from transports.amplitude import BOM, KEPT_BYTES, BadEvent, Head, read_head

FIRST_PIECES: Final = 100
"""Lines, or values, of a text among which one has to be a JSON object."""

MAX_OPEN: Final = 1_000
"""Brackets inside one another; Amplitude takes 40 (HTTP V2 page)."""

LOOK_BACK: Final = 256
"""Bytes behind the scanner that stay at hand: what stands before a bracket, blanks included."""


MAX_BLANK: Final = 65_536
"""Blanks behind a bracket that may still begin an array of events."""


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a file has been read: the next line is the one after ``line``.

    ``offset`` is in bytes of the text, unpacked; ``member`` an archive's. ``done``: all of it was
    read. ``problems``: what was not as it should be, by member.
    """

    member: str = ""
    line: int = 0
    offset: int = 0
    done: bool = False
    problems: list[tuple[str, str]] = []


class Line(NamedTuple):
    """A line or a value, stripped; cut to its beginning where it is not ``whole``: too large."""

    number: int
    text: bytes
    whole: bool
    end: int
    """Offset of what follows it; 0 where reading cannot begin there."""
    digest: bytes = b""
    """Of all of it, where it is not whole."""


class Plain(NamedTuple):
    """Lines that came together and are as nearly all lines are: whole, and none of them empty.

    ``first`` is the number of the first, ``begin`` its offset; ``pieces`` are as they were read,
    ``texts`` stripped.
    """

    first: int
    begin: int
    pieces: list[bytes]
    texts: list[bytes]

    def length(self, part: slice) -> int:
        """Return how many bytes some of the lines took, with their line breaks."""
        pieces = self.pieces[part]
        return sum(map(len, pieces)) + len(pieces)


class _Held:
    """The bytes of one event as they come: all, or the beginning and a digest of what is more."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._hash: Any = None
        self.text = b""
        self.length = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self._hash is None

    def add(self, piece: bytes) -> None:
        """Take a piece along, or its beginning."""
        self.length += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
            if len(self.text) == KEPT_BYTES:
                return
        self.text += piece
        if self.length > self._max:
            self._hash = self._hash or hashlib.blake2b(self.text, digest_size=16)
            self.text = self.text[:KEPT_BYTES]

    def take(self) -> tuple[bytes, bytes]:
        """Return what is held and the digest, empty where it is whole; and hold nothing."""
        text, digest = self.text, self._hash.digest() if self._hash else b""
        self._hash, self.text, self.length = None, b"", 0
        return text, digest


class Lines:
    """Cuts text into numbered lines; remembers only the line that is not finished yet."""

    def __init__(self, max_bytes: int, start: Position | None = None) -> None:
        start = start or Position()
        self._max = max_bytes
        self._number = start.line
        self._end = start.offset
        self._held = _Held(max_bytes)

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines that end in this text, but empty ones."""
        *pieces, last = text.split(b"\n")
        found = [line for piece in pieces if (line := self._finish(piece, 1)) is not None]
        if last:
            self._held.add(last)
        return found

    def cut_plain(self, text: bytes) -> Plain | None:
        """Do what ``cut`` does, all lines at once; do nothing where one of them needs a look.

        The first line of all may have a byte order mark, so that one is looked at.
        """
        held = self._held
        if not self._number or not held.whole:
            return None
        *pieces, last = text.split(b"\n")
        if not pieces:
            return None
        pieces[0] = held.text + pieces[0]
        texts = [piece.strip() for piece in pieces]
        if not all(texts) or max(map(len, pieces)) > self._max or len(last) > self._max:
            return None
        plain = Plain(self._number + 1, self._end, pieces, texts)
        self._number += len(texts)
        self._end += held.length + len(text) - len(last)
        held.take()
        held.add(last)
        return plain

    def finish(self) -> list[Line]:
        """Return what is left when the text ends without a line break."""
        line = self._finish(b"", 0) if self._held.length else None
        return [line] if line else []

    def _finish(self, piece: bytes, breaks: int) -> Line | None:
        length, digest = len(piece), b""
        if self._held.length or length > self._max:
            self._held.add(piece)
            length = self._held.length
            piece, digest = self._held.take()
        self._number += 1
        self._end += length + breaks
        if self._number == 1:
            piece = piece.removeprefix(BOM)
        line = piece.strip()
        return Line(self._number, line, not digest, self._end, digest) if line else None


# --- values -------------------------------------------------------------------------------

_BETWEEN: Final = re.compile(rb"[\s,\x1e]*+")
"""What may stand between values; 0x1e begins each of them in a sequence (RFC 7464)."""

_FLAT: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\[^\n])*+")*+')
"""What neither opens nor closes anything, whole texts included."""

_TEXT: Final = re.compile(rb"(?:[^\"\\\n]++|\\[^\n])*+")
_REST_OF_LINE: Final = re.compile(rb"[^\n{]*+")
_SCALAR: Final = re.compile(rb'[^\s",\[\]{}]*+')
_ARRAY: Final = re.compile(rb"\[\s*+([{\]])?")
"""How an array of events begins; a log line may begin with a bracket too."""

_EVENTS: Final = re.compile(rb'[{,]\s*+"events"\s*+:\s*+\Z')
_NEXT_OBJECT: Final = re.compile(rb"[\n}]\s*+,?\s*+(?=\{)")
_OPENER: Final = {0x7D: b"{", 0x5D: b"["}


class Values:
    """Cuts a text of JSON values, and of arrays and request bodies around them, into events.

    It looks at brackets and texts only, and so does not say whether an event is JSON. Its numbers
    count events. Held are the event that is not finished yet, and ``LOOK_BACK`` bytes.

    Rules
    =====
    1. ``_open`` are the brackets that are open, of which ``_base`` stand around events. An event
       is all from the bracket that opens on this base to the one that closes it.
    2. A bracket closes the last one of its kind, and with it what was opened since; one without its
       like closes nothing.
    3. A broken event (see above) ends where the next begins.
    """

    def __init__(self, max_bytes: int) -> None:
        self._held = _Held(max_bytes)
        self._buffer = b""
        self._begin = 0  # of the event in the buffer, or of its rest
        self._at = 0  # scanned up to here
        self._open = bytearray()
        self._base = 0
        self._state: Callable[[], bool] = self._between
        self._indent: bytes | None = b""  # before this event on its line; None: something else
        self._behind_events = False
        self._ended = False
        self._number = 0
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
        end = _match(_BETWEEN, self._buffer, self._at)
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
        array = _ARRAY.match(self._buffer, begin)
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
        end = self._at = _match(_FLAT, self._buffer, self._at)
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
        if len(self._open) > 1 or self._base or self._behind_events or not _EVENTS.search(before):
            return False
        return b'"event_type"' not in self._held.text + self._buffer[self._begin : self._at]

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
        end = self._at = _match(_TEXT, self._buffer, self._at)
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
            found = _NEXT_OBJECT.search(self._buffer, self._at)
        else:
            at = max(self._begin, self._at - 1 - len(self._indent))
            found = re.compile(b"\n" + re.escape(self._indent) + rb"(?=\{)").search(
                self._buffer, at
            )
        if found is None:
            self._at = max(self._at, len(self._buffer) - LOOK_BACK)
            return False
        self._end_broken(found.end())
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
        end = self._at = _match(pattern, self._buffer, self._at)
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
        self._begin, self._indent = end, None
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


def _match(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Return where a pattern that matches anything ends."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


# --- either -------------------------------------------------------------------------------


class Cutter:
    """Cuts a text into its events; its beginning tells how they are set in it.

    ``problem`` says what is wrong with the text as a whole, once that is known: it is ``refused``,
    and nothing of it is an event, or it ends too early.
    """

    def __init__(self, max_bytes: int, start: Position | None = None) -> None:
        self._max = max_bytes
        self._begun = b""
        self._held: list[Line] = []
        self._cutter: Lines | Values | None = None
        if start and start.offset:
            self._cutter = Lines(max_bytes, start)
        self._accepted = self._cutter is not None
        self.refused = False
        self.problem = ""

    def cut(self, text: bytes) -> list[Line]:
        """Return the events that end in this text, and those before that were held back."""
        if self._accepted and self._cutter is not None:
            return self._cutter.cut(text)
        return [] if self.refused else self._admit(self._cut_first(text))

    def cut_plain(self, text: bytes) -> Plain | None:
        """Return the lines that end in this text at once, where that is possible; see ``Lines``."""
        if self._accepted and isinstance(self._cutter, Lines):
            return self._cutter.cut_plain(text)
        return None

    def finish(self) -> list[Line]:
        """Return what is left when the text ends."""
        if self.refused:
            return []
        found = [] if self._cutter else self._begin(shape_of(self._begun, self._max, ended=True))
        if self._cutter is not None:
            found += self._cutter.finish()
        if isinstance(self._cutter, Values):
            self.problem = self._cutter.problem
        return self._admit(found, ended=True)

    def _cut_first(self, text: bytes) -> list[Line]:
        if self._cutter is not None:
            return self._cutter.cut(text)
        self._begun += text
        return self._begin(shape_of(self._begun, self._max))

    def _begin(self, shape: Shape | None) -> list[Line]:
        if shape is None:
            return []
        self._cutter = shape(self._max)
        begun, self._begun = self._begun, b""
        return self._cutter.cut(begun.removeprefix(BOM) if shape is Values else begun)

    def _admit(self, found: list[Line], *, ended: bool = False) -> list[Line]:
        """Hold back what is found until an object is among it; without one, refuse all."""
        if self._accepted:
            return found
        held = self._held = self._held + found
        if any(map(_is_object, held[:FIRST_PIECES])) or (ended and self.problem):
            self._accepted, self._held = True, []
            return held
        if len(held) >= FIRST_PIECES or (ended and held):
            self.refused, self._held = True, []
            self.problem = kinds.not_json(held[0].text)
        return []


def _is_object(line: Line) -> bool:
    if not line.whole:
        return line.text.startswith(b"{")
    head, _ = read_head(line.text)
    return not (isinstance(head, BadEvent) and head.reason in ("invalid_json", "not_an_object"))


def _is_event(line: Line) -> bool:
    head, _ = read_head(line.text)
    return not line.whole or (isinstance(head, Head) and head.event_type is not None)


Shape = type[Lines] | type[Values]


def shape_of(text: bytes, max_bytes: int, *, ended: bool = False) -> Shape | None:
    """Return what a text is to be cut by, or None: more of it has to be seen.

    The first line tells that begins like an object, or an array of them, and is neither broken nor
    an object that is no event.
    """
    at = len(BOM) if text.startswith(BOM) else 0
    for _ in range(FIRST_PIECES):
        line = at
        at = _match(_BETWEEN, text, line)
        if text[at : at + 1] == b"{":
            if text[line:at].strip():
                return Values  # a comma, or the mark of a sequence
            shape = _shape_of_object(text[at:], max_bytes, ended=ended)
            if shape != "next line":
                return None if shape == "more" else shape
        array = _ARRAY.match(text, at)
        if array and array[1]:
            return Values
        at = text.find(b"\n", at) + 1
        if not at or (array and array.end() == len(text)):
            return Lines if ended or len(text) > max_bytes else None
    return Lines


def _shape_of_object(
    text: bytes, max_bytes: int, *, ended: bool
) -> Shape | Literal["more", "next line"]:
    """Return the shape of a text that begins with an object, or what would tell."""
    line, line_end, rest = text.partition(b"\n")
    if not line_end and not ended and len(text) <= max_bytes:
        return "more"
    probe = Values(max_bytes)
    found = probe.cut(line + line_end)
    if probe.bodies or len(found) > 1:
        return Values
    if probe.is_between and found and found[0].whole and found[0].text != line.strip():
        return Values  # and something behind it
    if probe.is_between:
        return Lines if any(map(_is_event, found)) else "next line"
    if probe.is_broken:
        return "next line"
    if not line_end:
        return Values if ended else Lines  # one that is too large
    begin = _match(_BETWEEN, rest, 0)
    if begin == len(rest) and not ended and len(text) <= max_bytes:
        return "more"
    broke_off = rest[begin : begin + 1] == b"{" and probe.cut(rest[: begin + 1])
    return "next line" if broke_off else Values
