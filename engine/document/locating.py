"""The positions of values and comments in the text of a TOML document.

Rules
=====
1. Only a text that ``tomllib`` reads is looked at, so the scanner knows correct TOML only.
2. The values that the scanner finds are compared with the table: each is there once, and no other.
   Where they disagree, nothing is known and nothing is shown.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import Any, Final, NamedTuple

from amplitude_intercom.engine.document.refusals import CannotMask
from amplitude_intercom.engine.document.tables import BOM, Path, Table, leaves, parsed


class Extent(NamedTuple):
    """Characters of a text, from ``start`` to before ``end``."""

    start: int
    end: int


class Located(NamedTuple):
    """A text's table, its values and lists by their paths, and its comments with their ``#``."""

    table: Table
    values: dict[Path, Extent]
    lists: dict[Path, Extent]
    comments: list[Extent]


def located(text: str) -> Located:
    """Return where values and comments are.

    Raises:
        NotToml: the text is not TOML.
        CannotMask: the positions are not known for sure.
    """
    table = parsed(text)
    scanner = _Scanner(text)
    try:
        scanner.document()
    except (_Unexpected, RecursionError) as error:
        raise CannotMask(f"the positions of the values are not known: {error}") from None
    found = Counter(path for path, _ in scanner.values)
    if found != Counter(path for path, _ in leaves(table)):
        raise CannotMask("the positions of the values are not known for sure")
    return Located(table, dict(scanner.values), scanner.lists, scanner.comments)


def value_of(raw: str) -> Any:
    """Return the value that a piece of TOML spells."""
    if raw[:1] in "\"'" and raw[1:-1].isprintable() and not {*"\"'\\"} & {*raw[1:-1]}:
        return raw[1:-1]  # a thousand times faster
    return tomllib.loads(f"value = {raw}")["value"]


def replaced(text: str, pieces: list[tuple[Extent, str]]) -> str:
    """Return a text with other characters at some extents, which do not overlap."""
    parts, behind = [], 0
    for extent, new in sorted(pieces):
        parts += [text[behind : extent.start], new]
        behind = extent.end
    return "".join([*parts, text[behind:]])


class _Unexpected(Exception):
    """The text goes on otherwise than the scanner expects."""


_BLANK: Final = re.compile(r"[ \t]*")
_COMMENT: Final = re.compile(r"#[^\r\n]*")
_NEWLINE: Final = re.compile(r"\r?\n")
_LONG_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' + r"|'''.*?'''(?:'{0,2})", re.DOTALL
)
_STRING: Final = re.compile(r'"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'")
_PLAIN: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:[^\s,#\]}]*|[^\s,#\[\]{}=\"']+")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class _Scanner:
    """Goes through a text once and notes its values, lists and comments."""

    def __init__(self, text: str) -> None:
        self.values: list[tuple[Path, Extent]] = []
        self.lists: dict[Path, Extent] = {}
        self.comments: list[Extent] = []
        self._text = text
        self._at = len(BOM) if text.startswith(BOM) else 0
        self._lengths: dict[Path, int] = {}
        """How many tables each array of tables has so far."""

    def document(self) -> None:
        """Go through all of the text."""
        section: Path = ()
        while self._skip_lines() < len(self._text):
            if self._sees("["):
                section = self._header()
            else:
                self._assignment(section)

    def _header(self) -> Path:
        """Read ``[a.b]`` or ``[[a.b]]``; return the path of its table."""
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        names = self._keys()
        self._at += brackets
        path: Path = ()
        for name in names[:-1]:
            path = self._entered((*path, name))
        path = (*path, names[-1])
        if brackets == 1:
            return self._entered(path)
        self._lengths[path] = self._lengths.get(path, 0) + 1
        return (*path, self._lengths[path] - 1)

    def _entered(self, path: Path) -> Path:
        """Return the path of a table; of an array of tables, that of its last one."""
        length = self._lengths.get(path)
        return path if length is None else (*path, length - 1)

    def _assignment(self, table: Path) -> None:
        path = (*table, *self._keys())
        self._expect("=")
        self._value(path)

    def _keys(self) -> list[str]:
        """Read a dotted key."""
        keys = []
        while True:
            self._match(_BLANK)
            quoted = self._matches(_STRING)
            raw = self._match(_STRING if quoted else _KEY)
            keys.append(value_of(raw) if quoted else raw)
            self._match(_BLANK)
            if not self._sees("."):
                return keys
            self._at += 1

    def _value(self, path: Path) -> None:
        self._match(_BLANK)
        start = self._at
        if self._sees("["):
            self._array(path)
        elif self._sees("{"):
            self._inline_table(path)
        else:
            kinds = (_LONG_STRING, _STRING, _PLAIN)
            self._match(next((kind for kind in kinds if self._matches(kind)), _PLAIN))
            self.values.append((path, Extent(start, self._at)))

    def _array(self, path: Path) -> None:
        start = self._at
        self._at += 1
        index = 0
        while not self._closes("]"):
            self._value((*path, index))
            index += 1
            self._comma()
        self._at += 1
        self.lists[path] = Extent(start, self._at)

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._closes("}"):
            self._assignment(path)
            self._comma()
        self._at += 1

    def _comma(self) -> None:
        self._skip_lines()
        if self._sees(","):
            self._at += 1

    def _closes(self, bracket: str) -> bool:
        self._skip_lines()
        return self._sees(bracket)

    def _skip_lines(self) -> int:
        """Skip blanks, newlines and comments; return the position behind them."""
        while True:
            before = self._at
            self._match(_BLANK)
            comment = _COMMENT.match(self._text, self._at)
            if comment:
                self.comments.append(Extent(*comment.span()))
                self._at = comment.end()
            newline = _NEWLINE.match(self._text, self._at)
            self._at = newline.end() if newline else self._at
            if self._at == before:
                return before

    def _sees(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _expect(self, character: str) -> None:
        if not self._sees(character):
            raise _Unexpected(f"no `{character}` at character {self._at}")
        self._at += 1

    def _matches(self, pattern: re.Pattern[str]) -> bool:
        return pattern.match(self._text, self._at) is not None

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _Unexpected(f"character {self._at}")
        self._at = found.end()
        return found[0]
