"""JSON with the slips of real writers, mended so that a slip costs one value. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_json = msgspec.json.Decoder()

MAX_MENDED: Final = 100_000
"""Most values that are mended in one text: fifty for each event of a full request."""

_UP_TO_A_HALF: Final = re.compile(
    rb"((?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).){0,20000}+)"
    rb"(?:(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|(.?))",
    re.DOTALL,
)
"""Text up to a half of a surrogate pair (group 2), or to an invalid escape (3), or the end.

One match takes thousands of pieces, so that a body full of escapes does not cost a call for each.
It takes no more than that, because other threads run only between two matches.
"""

_UP_TO_NO_NUMBER: Final = re.compile(
    rb'((?:[^"NI0-9-]++'
    rb'|"(?:[^"\\]++|\\.){0,100}+"'  # a text: words in it are no numbers
    rb"|-?[0-9]{1,200}+(?:\.[0-9]++)?+(?:[eE](?:-[0-9]++|\+?[0-9]{1,2}+))?+(?![0-9.eE+-])"
    rb"|N(?!aN)|I(?!nfinity)|-(?!Infinity|[0-9])){0,5000}+)"
    rb"(?:(NaN|-?Infinity)|(-?[0-9][0-9.eE+-]*+)"
    rb'|("(?:[^"\\]++|\\.){0,200000}+(?:"|.*+\Z)))?',
    re.DOTALL,
)
"""JSON up to a word that is no number (group 2), a number that may overflow (3), a long text (4).

A match takes pieces as above, except for one long text. After a text that is longer still, or has
no end, all of the rest counts as part of that text.
"""


def mend(raw: bytes) -> bytes:
    """Return JSON in which a writer's slip costs one value, not the whole text.

    Python, Java and JavaScript writers cut strings between the halves of an emoji: a half becomes
    U+FFFD. They write ``NaN``, ``Infinity`` and numbers beyond any float: these become null. Only
    for texts that could not be decoded. The time is in proportion to the length.
    """
    return _UP_TO_NO_NUMBER.sub(_mend_number, mend_surrogates(raw), MAX_MENDED)


def mend_surrogates(raw: bytes) -> bytes:
    """Return JSON with U+FFFD for each half of a surrogate pair, which UTF-8 cannot encode."""
    return _UP_TO_A_HALF.sub(_mend_surrogate, raw, MAX_MENDED) if b"\\u" in raw else raw


def _mend_surrogate(found: re.Match[bytes]) -> bytes:
    return found[1] + (b"\\ufffd" if found[2] else found[3])


def _mend_number(found: re.Match[bytes]) -> bytes:
    before, no_number, number, text = found.groups(b"")
    if no_number or (number and not _is_number(number)):
        return before + b"null"
    return before + number + text


def _is_number(token: bytes) -> bool:
    try:
        _json.decode(token)
    except msgspec.DecodeError:
        return False
    return True
