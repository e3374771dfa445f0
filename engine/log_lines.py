"""The text of a log line: bounded values, without characters that a terminal obeys. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

MAX_LINE_BYTES: Final = 16_384
MAX_VALUE: Final = 1_024
"""Characters of one value: an id, a message of Intercom's; none that is useful is longer."""

MAX_TRACEBACK: Final = 8_192
MAX_ITEMS: Final = 20
"""Elements of a list, or keys of a mapping, in one value."""

MAX_DEPTH: Final = 3
MAX_BITS: Final = 256


# --- bounded values -----------------------------------------------------------------------


def bounded(value: Any, most: int = MAX_VALUE, depth: int = MAX_DEPTH) -> Any:
    """Return a value as plain JSON types, cut to ``most`` characters a text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return cut(_encodable(value), most)
    if isinstance(value, int):
        bits = value.bit_length()
        return int(value) if bits <= MAX_BITS else f"a number of {bits} bits"
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and infinities are not JSON
    if isinstance(value, bytes):
        return cut(value[: most + 1].decode(errors="backslashreplace"), most)
    if depth and isinstance(value, Mapping):
        return _some({cut(str(k), most): v for k, v in _first(value.items())}, value, most, depth)
    if depth and isinstance(value, list | tuple | set | frozenset):
        some = [bounded(inner, most, depth - 1) for inner in _first(value)]
        return [*some, f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else some
    return cut(_encodable(str(value)), most)


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, which no reader of JSON has to take."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _first(values: Any) -> list[Any]:
    return [value for value, _ in zip(values, range(MAX_ITEMS), strict=False)]


def _some(some: dict[str, Any], whole: Mapping[Any, Any], most: int, depth: int) -> dict[str, Any]:
    shown = {key: bounded(value, most, depth - 1) for key, value in some.items()}
    return {**shown, "…": f"{len(whole) - MAX_ITEMS} more"} if len(whole) > MAX_ITEMS else shown


def cut(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters and a mark; its beginning and its end stay."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}… {len(text) - 2 * half} more …{text[-half:]}"


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text in which no character controls a terminal; ``lines`` keeps line ends."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _printable_value(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable_value(inner) for key, inner in value.items()}
    return [_printable_value(inner) for inner in value] if isinstance(value, list) else value


# --- one line -----------------------------------------------------------------------------


def json_line(entry: dict[str, Any]) -> bytes:
    """Return an entry as one line of JSON, in ASCII: no character of it controls a terminal."""
    return json.dumps(entry).encode() + b"\n"


class HumanLine:
    """An entry for people at a terminal."""

    def __init__(self, *, colors: bool, encoding: str) -> None:
        self._encoding = encoding
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, entry: dict[str, Any]) -> bytes:
        exception = entry.pop("exception", None)
        said = {printable(key): _printable_value(value) for key, value in entry.items()}
        if exception is not None:
            said["exception"] = printable(exception, lines=True)
        line = str(self._render(None, "", said)) + "\n"
        return line.encode(self._encoding, "backslashreplace")


def render(entry: Mapping[str, Any], line_of: Callable[[dict[str, Any]], bytes]) -> bytes:
    """Return an entry's line, of at most ``MAX_LINE_BYTES``: the longer it is, the more is cut."""
    first = {key: entry[key] for key in ("event", "level", "timestamp") if key in entry}
    keys = list({**first, **entry}.items())[: 2 * MAX_ITEMS]
    for most in (MAX_VALUE, MAX_VALUE // 16):
        limits = {"exception": most * MAX_TRACEBACK // MAX_VALUE}
        line = line_of({cut(str(k), 64): bounded(v, limits.get(k, most)) for k, v in keys})
        if len(line) <= MAX_LINE_BYTES:
            return line
    return line_of({**{key: bounded(value, 64) for key, value in first.items()}, "cut": True})
