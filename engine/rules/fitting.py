"""Texts, names, dates and metadata as Intercom takes them: changed by rule, or left out.

Intercom's rules that are kept here, and where they are from:

====================================================  =============================================
a text has at most 255 characters                     help articles 175 and 179
a metadata key has none of ``. $ ~ ` ! @ # % ^ & *``  help article 175
``' { } | \\ "`` and NUL; case does not tell keys
apart
metadata values are texts, numbers, dates (Unix       API description 2.16, ``POST /events``;
seconds), rich links and amounts of money; not        help article 175
booleans, so these become text
nested values are not supported; an empty object or   intercom-ruby #244; help article 5245634;
array makes Intercom ignore the whole event           analytics.js-integrations #561
times are Unix seconds everywhere                     API description 2.16
====================================================  =============================================

Everything here is pure; the same value always comes out the same.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Literal, TypeGuard

import msgspec

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.transports.amplitude import MAX_TIME, in_milliseconds, parse_time

MAX_INTERCOM_TEXT: Final = 255
"""Characters of a text (help articles 175 and 179)."""

MAX_NAME: Final = 255
"""Characters of an event name or a metadata key: nothing is documented; it bounds what is sent."""

MAX_WHOLE: Final = 2**53
"""Whole numbers from here on are not told apart by programs that know only floating point."""

MAX_DEPTH: Final = 8
"""Objects within one another that are flattened; what is deeper is left out."""

MAX_SPREAD: Final = 256
"""Values of one object that are looked at: more than twice the keys that metadata can have."""

MAX_ELEMENTS: Final = 1_000
"""Elements of an array that are looked at; 255 characters hold 85 that are not empty."""

SEPARATOR: Final = "_"
"""Between the names of a flattened key: ``.`` and brackets are not allowed in keys."""


class Note(msgspec.Struct, frozen=True, gc=False):
    """An adjustment that does not know yet where it was."""

    reason: AdjustmentReason
    what: str


Fitted = tuple[Any, Note | None]
"""A value as Intercom takes it, None where it is left out, and what was done to it."""


class Style(msgspec.Struct, frozen=True):
    """What becomes of values that Intercom has no kind for; see the settings."""

    nested: Literal["flatten", "drop"] = "flatten"
    arrays: Literal["join", "drop"] = "join"
    stringify: bool = False


# --- texts and names ----------------------------------------------------------------------


def cut(text: str, length: int = MAX_INTERCOM_TEXT) -> str:
    """Return the beginning of a text, not ending inside of what people see as one character."""
    if len(text) <= length:
        return text
    end = length
    while end > length - 32 and _joins(text[end - 1], text[end]):
        end -= 1
    return text[:end]


_ZERO_WIDTH_JOINER: Final = "\N{ZERO WIDTH JOINER}"


def _joins(before: str, after: str) -> bool:
    """Whether two code points belong to one character: accents, joined emoji, skin tones, flags."""
    return (
        _ZERO_WIDTH_JOINER in (before, after)
        or unicodedata.category(after) in ("Mn", "Me", "Mc")
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff")
    )


_UNWRITTEN: Final = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
"""Characters that are no writing: control characters, halves of surrogate pairs."""

_ILLEGAL_IN_NAME: Final = re.compile(rf"[.${_UNWRITTEN}]")
_ILLEGAL_IN_KEY: Final = re.compile(rf"[.$~`!@#%^&*'{{}}|\\\"{_UNWRITTEN}]")
_ILLEGAL_IN_TEXT: Final = re.compile(rf"(?![\t\n\r])[{_UNWRITTEN}]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """Return a text with spaces for control characters, tabs and line ends excepted."""
    return text if text.isprintable() else _ILLEGAL_IN_TEXT.sub(" ", text)


def encodable(text: str) -> str:
    """Return a text that UTF-8 can write: with U+FFFD for halves of surrogate pairs."""
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", text)


def is_blank(text: str) -> bool:
    """Return whether a name shows nothing: it is empty, or of spaces and control characters.

    Only as much of it counts as is sent.
    """
    text = text[:MAX_NAME]
    if text.isprintable():
        return not text.strip()
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def fit_name(name: str) -> str:
    """Return an event name as Intercom keeps it: it replaces ``.`` and ``$`` by ``-`` itself."""
    return cut(_ILLEGAL_IN_NAME.sub("-", name[: MAX_NAME + 1]), MAX_NAME)


def fit_key(key: str) -> str:
    """Return a metadata key without the characters that Intercom does not take."""
    return cut(_ILLEGAL_IN_KEY.sub("_", key[: MAX_NAME + 1]), MAX_NAME)


def is_legal_key(key: str) -> bool:
    """Return whether Intercom takes this as the name of a metadata key or custom attribute."""
    return not is_blank(key) and fit_key(key) == key


# --- dates --------------------------------------------------------------------------------

_DATE_KEY: Final = re.compile(r"(?:^|[_\s-])(?:at|date)$|(?:At|Date)$", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d.{0,40})?|\d{8}", re.ASCII)
DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d.{0,40}(?:Z|[+-]\d\d:?\d\d)", re.A)
_COUNT: Final = re.compile(r"-?\d{9,20}", re.ASCII)
"""A date as the digits of a number; fewer are as likely something else."""

_MILLISECONDS: Final = 10**11
"""From here on a number of a date counts milliseconds: as seconds it would be the year 5138."""


@lru_cache(1_024)
def is_date_key(key: str) -> bool:
    """Return whether a name in the settings says that it holds a date: ``renewed_at``."""
    return bool(_DATE_KEY.search(key))


DATE_ENDING: Final = "_date"
"""Intercom shows a metadata key that ends so as a date (API description 2.16)."""


def to_seconds(value: Any) -> int | None:
    """Return the Unix seconds of a date: text, digits, a number of seconds or less; else None."""
    if isinstance(value, str):
        return _text_to_seconds(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -MAX_TIME < value < MAX_TIME:  # nor is it NaN
        return None
    whole = int(value)
    seconds = in_milliseconds(whole) // 1000 if abs(whole) >= _MILLISECONDS else whole
    return seconds if abs(seconds) < _MILLISECONDS else None


def _text_to_seconds(text: str) -> int | None:
    if _COUNT.fullmatch(text):
        return to_seconds(int(text))
    if not _DATE.fullmatch(text):
        return None
    try:
        return parse_time(text) // 1000
    except ValueError:
        return None


def as_date(value: Any) -> Fitted:
    """Return the Unix seconds of a date; else the value."""
    seconds = to_seconds(value)
    if seconds is None or seconds == value:
        return value, None
    return seconds, Note(AdjustmentReason.DATE_CONVERTED, "a date, as Unix seconds")


# --- single values ------------------------------------------------------------------------


def _fit_text(value: str, style: Style) -> Fitted:
    kept = cut(value)
    cleaned = clean(kept)
    if len(kept) < len(value):
        return cleaned, Note(
            AdjustmentReason.TEXT_CUT, f"cut from {len(value)} to {len(kept)} characters"
        )
    note = (
        None
        if cleaned == kept
        else Note(AdjustmentReason.CHARACTERS_CLEANED, "without control characters")
    )
    return cleaned, note


def _fit_whole(value: int, style: Style) -> Fitted:
    if style.stringify:
        return _written(value), None
    if -MAX_WHOLE < value < MAX_WHOLE:
        return value, None
    return _written(value), Note(AdjustmentReason.NUMBER_AS_TEXT, "a number beyond 2^53, as text")


def _written(value: int) -> str:
    """Return a whole number's digits, or its size where it has more than Python will write."""
    try:
        return cut(str(value))
    except ValueError:
        return f"about 10^{int(value.bit_length() * math.log10(2))}"


def _fit_float(value: float, style: Style) -> Fitted:
    if not math.isfinite(value):
        return None, Note(AdjustmentReason.NOT_FINITE, "not a finite number, left out")
    return (repr(value) if style.stringify else value), None


def _fit_boolean(value: bool, style: Style) -> Fitted:
    return ("true" if value else "false"), None


def _fit_nothing(value: None, style: Style) -> Fitted:
    return None, None


_BY_TYPE: Final[Mapping[type, Callable[[Any, Style], Fitted]]] = {
    str: _fit_text,
    int: _fit_whole,
    float: _fit_float,
    bool: _fit_boolean,
    type(None): _fit_nothing,
}
"""How a single value becomes one of metadata."""


def fit_scalar(value: Any, style: Style) -> Fitted:
    """Return a single value as metadata takes it."""
    return _BY_TYPE[type(value)](value, style)


AS_TEXT: Final = Style(stringify=True)


def join(values: list[Any]) -> Fitted:
    """Return an array as one text, its elements that are single values being joined by commas.

    No more of it is looked at than the text can hold, nor more than ``MAX_ELEMENTS``.
    """
    parts, length = [], -len(JOINT)
    for value in islice(values, MAX_ELEMENTS):
        if isinstance(value, list | dict):
            continue
        fitted = fit_scalar(value, AS_TEXT)[0]
        if fitted is None:
            continue
        parts.append(fitted)
        length += len(JOINT) + len(fitted)
        if length > MAX_INTERCOM_TEXT:
            break
    if not parts:
        among = "" if len(values) <= MAX_ELEMENTS else f" in its first {MAX_ELEMENTS}"
        return None, Note(
            AdjustmentReason.ARRAY_LEFT_OUT, f"an array without single values{among}, left out"
        )
    kept = cut(JOINT.join(parts))
    lost = f", cut to {len(kept)} characters" if len(kept) < length else ""
    some = "" if len(parts) == len(values) else f" {len(parts)} of them"
    return kept, Note(
        AdjustmentReason.ARRAY_JOINED, f"an array of {len(values)},{some} joined{lost}"
    )


JOINT: Final = ", "
"""Between the elements of an array, which is one text there."""


def is_plain(value: Any, style: Style) -> bool:
    """Return whether a value of metadata can go as it is: nearly all can, so it is asked first.

    That is so unless it is to be a date.
    """
    kind = type(value)
    if kind is str:
        return len(value) <= MAX_INTERCOM_TEXT and value.isprintable()
    if style.stringify:
        return False
    return (kind is int and -MAX_WHOLE < value < MAX_WHOLE) or (
        kind is float and math.isfinite(value)
    )


# --- metadata -----------------------------------------------------------------------------


def is_money(value: Mapping[str, Any]) -> bool:
    """Return whether an object is an amount of money as Intercom takes it."""
    if len(value) != 2 or "amount" not in value or "currency" not in value:
        return False
    amount, currency = value["amount"], value["currency"]
    return (
        type(amount) is int
        and 0 <= amount < MAX_WHOLE
        and isinstance(currency, str)
        and len(currency) == 3
        and currency.isascii()
        and currency.isalpha()
    )


def is_rich_link(value: Mapping[str, Any]) -> bool:
    """Return whether an object is a rich link as Intercom takes it."""
    if len(value) != 2 or "url" not in value or "value" not in value:
        return False
    url, text = value["url"], value["value"]
    return _is_short_text(url) and _is_short_text(text) and url.startswith(("http://", "https://"))


def _is_short_text(value: Any) -> TypeGuard[str]:
    return type(value) is str and len(value) <= MAX_INTERCOM_TEXT and value.isprintable()


Spread = list[tuple[str, Any, Note | None]]
"""Keys of metadata: what each gets, None where it gets nothing, and what was done to it."""


def spread(key: str, value: Any, style: Style, dated: bool = False) -> Spread:
    """Return what a property becomes in metadata: one key, or several where it is an object.

    ``key`` is one that Intercom takes. ``dated``: it is shown as a date, or the settings say that
    it is one.
    """
    found: Spread = []
    if isinstance(value, dict):
        _spread_object(found, key, value, style, 0)
    else:
        found.append((key, *_fit_single(value, style, dated)))
    return found


def _fit_single(value: Any, style: Style, dated: bool) -> Fitted:
    if isinstance(value, list):
        return fit_array(value, style)
    value, note = as_date(value) if dated else (value, None)
    fitted, other = fit_scalar(value, style)
    return fitted, other or note


def fit_array(value: list[Any], style: Style) -> Fitted:
    if not value:
        return None, Note(AdjustmentReason.EMPTY_LEFT_OUT, "an empty array, left out")
    if style.arrays == "drop":
        return None, Note(AdjustmentReason.ARRAY_LEFT_OUT, f"an array of {len(value)}, left out")
    return join(value)


def _spread_object(
    found: Spread, key: str, value: dict[str, Any], style: Style, depth: int
) -> None:
    if not value:
        found.append(
            (key, None, Note(AdjustmentReason.EMPTY_LEFT_OUT, "an empty object, left out"))
        )
    elif is_money(value) or is_rich_link(value):
        found.append((key, value, None))
    elif style.nested == "drop" or depth == MAX_DEPTH:
        found.append(
            (key, None, Note(AdjustmentReason.NESTED_LEFT_OUT, "a nested object, left out"))
        )
    else:
        keys = "1 key" if len(value) == 1 else f"{len(value)} keys"
        note = Note(AdjustmentReason.FLATTENED, f"an object of {keys}, flattened")
        found.append((key, None, note))
        _spread_items(found, key, value, style, depth + 1)


def _spread_items(
    found: Spread, outer: str, value: dict[str, Any], style: Style, depth: int
) -> None:
    for name, inner in value.items():
        if len(found) > MAX_SPREAD:
            what = f"what comes after {MAX_SPREAD} of its values, left out"
            found.append((outer, None, Note(AdjustmentReason.NESTED_LEFT_OUT, what)))
            return
        key = f"{outer}{SEPARATOR}{name}"
        if not name.isidentifier() or len(key) > MAX_NAME:  # most are fine as they are
            key = _fit_inner_key(found, outer, name)
        if not key:
            continue
        dated = key.endswith(DATE_ENDING)
        if is_plain(inner, style) and not dated:
            found.append((key, inner, None))
        elif isinstance(inner, dict):
            _spread_object(found, key, inner, style, depth)
        else:
            found.append((key, *_fit_single(inner, style, dated)))


def _fit_inner_key(found: Spread, outer: str, name: str) -> str:
    """Return the key of a nested value as Intercom takes it; empty where it has no name."""
    if is_blank(name):
        found.append(
            (
                outer,
                None,
                Note(AdjustmentReason.NESTED_LEFT_OUT, "a value without a name, left out"),
            )
        )
        return ""
    wanted = f"{outer}{SEPARATOR}{name[:MAX_NAME]}"
    key = fit_key(wanted)
    if key != wanted:
        what = f"{wanted[:MAX_NAME]!r}, with `_` for what keys cannot have"
        found.append((key, None, Note(AdjustmentReason.KEY_CLEANED, what)))
    return key
