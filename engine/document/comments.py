"""Secrets in comments: the words of a comment that must not be seen.

Rules
=====
1. A secret that the document has elsewhere is hidden in comments as well.
2. In a setting that is commented out, the texts of a secret's key are hidden, to the end of its
   list. So are all texts of a key that is no setting, such as ``password``.
   An element of a list of secrets may be commented out alone.
3. A word that looks like a token, long and of letters and digits, is hidden wherever it stands.

More cannot be known: ``# ask Mira, it is the dog's name`` stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from amplitude_intercom.engine.document.secret_values import MASK, is_reference, key_names

LEAST_KNOWN: Final = 4
"""Characters of a secret from which on it is looked for in comments: ``on`` is a word."""

LEAST_TOKEN: Final = 20
"""Characters from which on a word may be a token; Amplitude's keys have 32."""

_ASSIGNMENT: Final = re.compile(
    r"""^\#[\#\s]*+(?P<key>[\w"'](?:[\w.\-"'\ ]*?[\w"'])?)\s*=\s*(?P<value>.*)$"""
)
_INNER_KEY: Final = re.compile(
    r"""(?<![\w-])(?P<key>[\w-]++)["']?\s*+[=:]\s*+(?:\[[^\]]*\]?|["'][^"']*["']?)"""
)
_TEXT: Final = re.compile(r'"(?:\\.|[^"\\])*"?' + r"|'[^']*'?")
_WORD: Final = re.compile(r"[A-Za-z0-9+/_=.:~-]+")


class Comment(NamedTuple):
    """A comment with its ``#``. ``in_secrets``: it stands inside a list of secrets."""

    text: str
    in_secrets: bool = False


def hidden_in(comments: Sequence[Comment], secrets: Collection[str]) -> Iterator[str]:
    """Yield each comment with ``***`` for its secrets; ``secrets`` are known from elsewhere."""
    in_list = False
    texts = _known_hidden([comment.text for comment in comments], secrets)
    for comment, (_, in_secrets) in zip(texts, comments, strict=True):
        if in_secrets:
            shown, in_list = _texts_hidden(comment), False
        elif in_list:
            shown, in_list = _texts_hidden(comment), comment.rfind("[") >= comment.rfind("]")
        else:
            shown, in_list = _assignment_hidden(comment)
        yield _WORD.sub(lambda word: MASK if _is_token(word[0]) else word[0], shown)


def _known_hidden(comments: Sequence[str], secrets: Collection[str]) -> list[str]:
    """Return comments, each of one line, with ``***`` for known secrets, the longest first."""
    # In one text: each secret in each comment would be looked for a milliard times.
    text = "\n".join(comments)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= LEAST_KNOWN and "\n" not in secret:
            text = text.replace(secret, MASK)
    return text.split("\n") if comments else []


def _assignment_hidden(comment: str) -> tuple[str, bool]:
    """Return a comment without the texts of secret keys, and whether their list goes on."""
    found = _ASSIGNMENT.match(comment)
    if found and hides(found["key"].rpartition(".")[2].strip(" \"'")):
        value = found["value"]
        opened = value.lstrip().startswith("[") and "]" not in value
        return comment[: found.start("value")] + _texts_hidden(value), opened
    shown = _INNER_KEY.sub(
        lambda pair: _texts_hidden(pair[0]) if pair["key"] in key_names().secret else pair[0],
        comment,
    )
    return shown, False


def hides(key: str) -> bool:
    """Return whether the texts at a key are secrets: it is one's key, or no setting's."""
    return key not in key_names().other


def _texts_hidden(piece: str) -> str:
    return _TEXT.sub(lambda text: _text_hidden(text[0]), piece)


def _text_hidden(quoted: str) -> str:
    quote, inner = quoted[0], quoted.strip(quoted[0])
    return quoted if is_reference(inner) or inner in ("", "*") else f"{quote}{MASK}{quote}"


def _is_token(word: str) -> bool:
    if is_reference(word) or word.startswith(("http:", "https:")):
        return False
    parts = re.split(r"[./:~]", word)
    return any(map(_is_random, parts))


def _is_random(part: str) -> bool:
    """Whether a piece is as long and mixed as no word is."""
    digits = sum(character.isdigit() for character in part)
    letters = sum(character.isalpha() for character in part)
    return len(part) >= LEAST_TOKEN and digits >= 2 and letters >= 2
