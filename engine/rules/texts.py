"""Texts and names, cut and cleaned to the form that Intercom accepts.

- A text has at most 255 characters (help articles 175 and 179).
- A metadata key has none of ``. $ ~ ` ! @ # % ^ & * ' { } | \\ "`` and no NUL (help article 175).
- Intercom itself replaces ``.`` and ``$`` in an event name by ``-``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final, TypeGuard

MAX_INTERCOM_TEXT: Final = 255
"""Characters of a text (help articles 175 and 179)."""

MAX_NAME: Final = 255
"""Characters of an event name or a metadata key. Intercom documents no limit."""

MAX_COMBINED: Final = 32
"""Code points that a cut goes back, at most, to find the end of a visible character."""


def cut(text: str, length: int = MAX_INTERCOM_TEXT) -> str:
    """Return the first ``length`` code points of a text, or fewer to end on a visible character."""
    if len(text) <= length:
        return text
    end = length
    while end > length - MAX_COMBINED and _joins(text[end - 1], text[end]):
        end -= 1
    return text[:end]


_ZERO_WIDTH_JOINER: Final = "\N{ZERO WIDTH JOINER}"


def _joins(before: str, after: str) -> bool:
    """Return whether two code points show as one: accents, joined emoji, skin tones, flags."""
    return (
        _ZERO_WIDTH_JOINER in (before, after)
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff")
    )


_UNWRITTEN: Final = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
"""Control characters, and halves of surrogate pairs."""

_ILLEGAL_IN_NAME: Final = re.compile(rf"[.${_UNWRITTEN}]")
_ILLEGAL_IN_KEY: Final = re.compile(rf"[.$~`!@#%^&*'{{}}|\\\"{_UNWRITTEN}]")
_ILLEGAL_IN_TEXT: Final = re.compile(rf"(?![\t\n\r])[{_UNWRITTEN}]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """Return a text with spaces for control characters, except tabs and line ends."""
    return text if text.isprintable() else _ILLEGAL_IN_TEXT.sub(" ", text)


def encodable(text: str) -> str:
    """Return a text that UTF-8 can encode, with U+FFFD for halves of surrogate pairs."""
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", text)


def is_short(value: Any) -> TypeGuard[str]:
    """Return whether a value is a text that Intercom accepts unchanged."""
    return type(value) is str and len(value) <= MAX_INTERCOM_TEXT and value.isprintable()


def is_blank(text: str) -> bool:
    """Return whether a name is empty or has only spaces and control characters.

    Characters after the first ``MAX_NAME`` are never sent, so they do not count.
    """
    text = text[:MAX_NAME]
    if text.isprintable():
        return not text.strip()
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def fit_name(name: str) -> str:
    """Return an event name as Intercom stores it, with ``-`` for ``.`` and ``$``."""
    return cut(_ILLEGAL_IN_NAME.sub("-", name[: MAX_NAME + 1]), MAX_NAME)


def fit_key(key: str) -> str:
    """Return a metadata key with ``_`` for characters that Intercom refuses in keys."""
    return cut(_ILLEGAL_IN_KEY.sub("_", key[: MAX_NAME + 1]), MAX_NAME)


def is_legal_key(key: str) -> bool:
    """Return whether Intercom accepts this name of a metadata key or custom attribute."""
    return not is_blank(key) and fit_key(key) == key
