"""The known word that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MOST_WORDS = 1_000
MOST_CHARACTERS = 200
"""Bounds of what is compared: that takes time by words and by the square of their length."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like a word, whatever its case; None: none is like it."""
    short = (word for word in islice(known, MOST_WORDS) if len(word) <= MOST_CHARACTERS)
    by_lower = {known_word.lower(): known_word for known_word in short if known_word != word}
    found = get_close_matches(word[:MOST_CHARACTERS].lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question to append to a message; empty where no known word is like it."""
    found = nearest(word, known)
    return f"; did you mean `{found}`?" if found else ""
