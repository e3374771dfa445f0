"""Globs: patterns with stars, for whole texts.

============  ==========================================================================
``**``        any text
``*``         any text without a slash
``?``         one character, but no slash
``[a-z0-9]``  one of these, ``[!…]`` one that is none of them; never a slash
============  ==========================================================================

All other characters match themselves. A class may begin with ``]``. A bracket without its partner,
and an empty pair, are ordinary characters.

One pass over the text, at the same cost for every character: the bits of one number are all the
ways in which the text so far can match. Bit *n* says that the text so far matches the first *n*
single characters of the pattern. A character of the text moves a bit up if the pattern's next
character matches it, and leaves a bit unmoved if a star follows there. A matcher that tries one way
after another takes quadratic time, or worse, on a pattern with several stars.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

CHARACTERS_KEPT: Final = 256
"""Characters with a cached effect, per glob: more than most alphabets have."""

_TOKEN: Final = re.compile(r"(?P<stars>\*+)|\?|\[(?P<not>!?)(?P<set>\]?[^\]]*)\]|.", re.DOTALL)
_RANGE: Final = re.compile(r"(.)-(.)|(.)", re.DOTALL)


class Glob:
    """A glob, compiled: ``Glob("**/checkout?").matches(text)``."""

    __slots__ = ("_any", "_classes", "_effect", "_end", "_literals", "_slash_stays", "_stays")

    def __init__(self, pattern: str) -> None:
        """Compile a pattern.

        Raises:
            ValueError: a range runs backwards, as ``[z-a]``.
        """
        self._literals: dict[str, int] = {}
        self._any = self._stays = self._slash_stays = 0
        self._classes: list[tuple[int, bool, list[tuple[str, str]]]] = []
        self._end = 1
        for token in _TOKEN.finditer(pattern):
            self._add(token)
        self._effect = lru_cache(CHARACTERS_KEPT)(self._effect_of)

    def _add(self, token: re.Match[str]) -> None:
        if token["stars"]:
            self._stays |= self._end
            self._slash_stays |= self._end if len(token["stars"]) > 1 else 0
        elif token[0] == "?":
            self._any |= self._end
            self._end <<= 1
        elif token["set"]:
            self._classes.append((self._end, bool(token["not"]), _ranges(token["set"])))
            self._end <<= 1
        else:
            for character in token[0]:  # several only for an empty class: `[]`, `[!]`
                self._literals[character] = self._literals.get(character, 0) | self._end
                self._end <<= 1

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches the whole text."""
        states = 1
        for moves, stays in map(self._effect, text):
            states = (states & moves) << 1 | states & stays
            if not states:
                return False
        return bool(states & self._end)

    def _effect_of(self, character: str) -> tuple[int, int]:
        """Return the bits that a character moves up, and the bits that it leaves unmoved."""
        moves = self._literals.get(character, 0)
        if character == "/":
            return moves, self._slash_stays
        moves |= self._any
        for bit, negated, ranges in self._classes:
            if any(first <= character <= last for first, last in ranges) is not negated:
                moves |= bit
        return moves, self._stays

    def __repr__(self) -> str:
        return f"<Glob of {self._end.bit_length() - 1} characters>"


def _ranges(members: str) -> list[tuple[str, str]]:
    """Return the members of a class as pairs of first and last character."""
    found = [(first or single, last or single) for first, last, single in _RANGE.findall(members)]
    for first, last in found:
        if first > last:
            raise ValueError(f"the range {first}-{last} is upside down")
    return found
