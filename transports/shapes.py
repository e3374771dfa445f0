"""Text, cut into events, whatever their layout in it. Pure, and streamed.

Shapes
======
1. **Lines** (``LineCutter``): one JSON value a line (NDJSON). The fast path: lines are not decoded
   here. Only this shape can be entered in the middle.
2. **Values** (``ValueCutter``): all other JSON: objects over several lines, or several on one line;
   arrays of events; whole request bodies, ``{"api_key": …, "events": […]}``, for their events; and
   any of these one after the other. Commas between values do no harm.

``Cutter`` decides by the first line that begins like an object or an array of objects: a line that
is a whole event means lines. A broken line decides nothing. Lines end at a line that is an array of
events, or only an opening bracket: from there on the text is cut into values.

Invalid JSON costs only itself: one line, or one event among values (``transports.values``).

A text without any JSON object among its first lines or values is refused (``Cutter.problem``).
Until the first object is found, all lines or values are held back.
"""

from __future__ import annotations

from typing import Final, Literal

from amplitude_intercom.transports import kinds
from amplitude_intercom.transports.amplitude import BOM, BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.lines import FilePosition, Line, LineCutter, PlainLines
from amplitude_intercom.transports.values import ARRAY, BETWEEN, ValueCutter, match_end

FIRST_PIECES: Final = 100
"""Lines, or values, at the beginning of a text, one of which has to be a JSON object."""


class Cutter:
    """Cuts a text into its events; the beginning of the text decides the shape.

    ``problem``: the fault of the text as a whole, once it is known. Either the text is ``refused``,
    because nothing of it is an event, or it ends too early.
    """

    def __init__(self, max_bytes: int, start: FilePosition | None = None) -> None:
        self._max = max_bytes
        self._begun = b""
        self._held: list[Line] = []
        self._cutter: LineCutter | ValueCutter | None = None
        if start and start.offset:
            self._cutter = LineCutter(max_bytes, start)
        self._accepted = self._cutter is not None
        self.refused = False
        self.problem = ""

    def cut(self, text: bytes) -> list[Line]:
        """Return the events that end in this text, and those before that were held back."""
        if self._accepted and self._cutter is not None:
            return self._go_on(self._cutter, text)
        return [] if self.refused else self._admit(self._cut_first(text))

    def cut_plain(self, text: bytes) -> PlainLines | None:
        """Return all lines that end in this text at once, or None; see ``LineCutter``."""
        if self._accepted and isinstance(self._cutter, LineCutter):
            return self._cutter.cut_plain(text)
        return None

    def finish(self) -> list[Line]:
        """Return the events that are left at the end of the text."""
        if self.refused:
            return []
        found = [] if self._cutter else self._begin(shape_of(self._begun, self._max, ended=True))
        if isinstance(self._cutter, LineCutter):
            found += self._cutter.finish() + self._go_on_by_values(self._cutter)
        if isinstance(self._cutter, ValueCutter):
            found += self._cutter.finish()
            self.problem = self._cutter.problem
        return self._admit(found, ended=True)

    def _cut_first(self, text: bytes) -> list[Line]:
        if self._cutter is not None:
            return self._go_on(self._cutter, text)
        self._begun += text
        return self._begin(shape_of(self._begun, self._max))

    def _begin(self, shape: Shape | None) -> list[Line]:
        if shape is None:
            return []
        self._cutter = shape(self._max)
        begun, self._begun = self._begun, b""
        return self._go_on(self._cutter, begun.removeprefix(BOM) if shape is ValueCutter else begun)

    def _go_on(self, cutter: LineCutter | ValueCutter, text: bytes) -> list[Line]:
        """Cut on, by values from the place where lines end and larger events begin."""
        found = cutter.cut(text)
        return found + self._go_on_by_values(cutter) if isinstance(cutter, LineCutter) else found

    def _go_on_by_values(self, lines: LineCutter) -> list[Line]:
        if not lines.rest:
            return []
        self._cutter = ValueCutter(self._max, lines.number)
        return self._cutter.cut(lines.rest)

    def _admit(self, found: list[Line], *, ended: bool = False) -> list[Line]:
        """Hold events back until there is an object among them; without one, refuse all."""
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


Shape = type[LineCutter] | type[ValueCutter]


def shape_of(text: bytes, max_bytes: int, *, ended: bool = False) -> Shape | None:
    """Return the cutter for a text, or None if more of the text is needed to decide.

    The first line decides that begins like an object, or an array of objects, and is neither broken
    nor an object that is no event.
    """
    at = len(BOM) if text.startswith(BOM) else 0
    for _ in range(FIRST_PIECES):
        line = at
        at = match_end(BETWEEN, text, line)
        if text[at : at + 1] == b"{":
            if text[line:at].strip():
                return ValueCutter  # a comma, or the mark of a sequence
            shape = _shape_of_object(text[at:], max_bytes, ended=ended)
            if shape != "next line":
                return None if shape == "more" else shape
        array = ARRAY.match(text, at)
        if array and array[1]:
            return ValueCutter
        at = text.find(b"\n", at) + 1
        if not at or (array and array.end() == len(text)):
            return LineCutter if ended or len(text) > max_bytes else None
    return LineCutter


def _shape_of_object(
    text: bytes, max_bytes: int, *, ended: bool
) -> Shape | Literal["more", "next line"]:
    """Return the shape of a text that begins with an object, or the text needed to decide."""
    line, line_end, rest = text.partition(b"\n")
    if not line_end and not ended and len(text) <= max_bytes:
        return "more"
    probe = ValueCutter(max_bytes)
    found = probe.cut(line + line_end)
    if probe.bodies or len(found) > 1:
        return ValueCutter
    if probe.is_between and found and found[0].whole and found[0].text != line.strip():
        return ValueCutter  # and something behind it
    if probe.is_between:
        return LineCutter if any(map(_is_event, found)) else "next line"
    if probe.is_broken:
        return "next line"
    if not line_end:
        return ValueCutter if ended else LineCutter  # one that is too large
    begin = match_end(BETWEEN, rest, 0)
    if begin == len(rest) and not ended and len(text) <= max_bytes:
        return "more"
    broke_off = rest[begin : begin + 1] == b"{" and probe.cut(rest[: begin + 1])
    return "next line" if broke_off else ValueCutter
