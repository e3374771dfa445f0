"""Payloads as text for people: JSON in lines, with each digit and the order of keys as they came.

A browser that parsed the payload would round its large numbers. Pure.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MOST_CHARACTERS: Final = 262_144
MOST_LEVELS: Final = 64
"""Of nesting: the indentation of more would grow with the square of the size."""

_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


class Payload(msgspec.Struct, frozen=True):
    """A payload as text. ``is_whole``: no character of it was left out or replaced.

    ``is_json``: the text is its JSON, in lines; otherwise it is as it came. ``bytes``: its length
    as it came.
    """

    text: str
    is_whole: bool
    is_json: bool
    bytes: int


def payload_of(raw: bytes) -> Payload:
    """Return a payload as text, of at most ``MOST_CHARACTERS``."""
    lines = _in_lines(raw)
    text, is_exact = _decoded(raw if lines is None else lines)
    is_whole = is_exact and len(text) <= MOST_CHARACTERS
    return Payload(text[:MOST_CHARACTERS], is_whole, lines is not None, len(raw))


def _in_lines(raw: bytes) -> bytes | None:
    """Return JSON in lines; None: it is no JSON, or is nested too deeply."""
    level = most = 0
    for token in _TOKENS.finditer(raw):
        level += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        most = max(most, level)
    if most > MOST_LEVELS:
        return None
    try:
        return msgspec.json.format(raw, indent=2)  # it copies numbers, and never reads them
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decoded(raw: bytes) -> tuple[str, bool]:
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), False
