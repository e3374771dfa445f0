"""Single values and arrays as Intercom takes them: unchanged, converted by rule, or left out.

Rules of Intercom's that are kept here, with their sources:

- Metadata values are texts, numbers, dates, rich links and amounts of money (API description 2.16,
  ``POST /events``; help article 175). A boolean becomes a text.
- An empty object or array makes Intercom ignore the whole event (analytics.js-integrations #561).

The same value always gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.dates import to_seconds
from amplitude_intercom.engine.rules.numerals import MAX_WHOLE, digits
from amplitude_intercom.engine.rules.texts import MAX_INTERCOM_TEXT, clean, cut

MAX_ELEMENTS: Final = 1_000
"""Elements of an array that are read: 255 characters hold 85 that are not empty."""

JOINT: Final = ", "
"""Separates the elements of an array in the text that it becomes."""


class Note(msgspec.Struct, frozen=True, gc=False):
    """An adjustment of a value, before the value's field is known."""

    reason: AdjustmentReason
    what: str


Fitted = tuple[Any, Note | None]
"""A value as Intercom takes it, None if it is left out, and the adjustment made, if any."""


class Style(msgspec.Struct, frozen=True):
    """The settings for values of types that Intercom does not have."""

    nested: Literal["flatten", "drop"] = "flatten"
    arrays: Literal["join", "drop"] = "join"
    stringify: bool = False


AS_TEXT: Final = Style(stringify=True)


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
    """Return a whole number's first digits, or its size if Python refuses to write it."""
    written = digits(value)
    return (
        f"about 10^{int(value.bit_length() * math.log10(2))}" if written is None else cut(written)
    )


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
"""The conversion of each type of single value."""


def fit_scalar(value: Any, style: Style) -> Fitted:
    """Return a single value, neither object nor array, as metadata takes it."""
    return _BY_TYPE[type(value)](value, style)


def as_date(value: Any) -> Fitted:
    """Return the Unix seconds of a date; any other value unchanged."""
    seconds = to_seconds(value)
    if seconds is None or seconds == value:
        return value, None
    return seconds, Note(AdjustmentReason.DATE_CONVERTED, "a date, as Unix seconds")


def fit_array(value: list[Any], style: Style) -> Fitted:
    """Return an array as metadata takes it: as one text, or left out."""
    if not value:
        return None, Note(AdjustmentReason.EMPTY_LEFT_OUT, "an empty array, left out")
    if style.arrays == "drop":
        return None, Note(AdjustmentReason.ARRAY_LEFT_OUT, f"an array of {len(value)}, left out")
    return join(value)


def join(values: list[Any]) -> Fitted:
    """Return the single values of an array as one text, separated by ``JOINT``.

    Nested objects and arrays are skipped. Reading stops when the text is full, and after
    ``MAX_ELEMENTS`` elements.
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


def is_plain(value: Any, style: Style) -> bool:
    """Return whether a value can be sent unchanged, unless its key is a date's.

    Nearly all can, so callers ask this first, and build no adjustment for those.
    """
    kind = type(value)
    if kind is str:
        return len(value) <= MAX_INTERCOM_TEXT and value.isprintable()
    if style.stringify:
        return False
    return (kind is int and -MAX_WHOLE < value < MAX_WHOLE) or (
        kind is float and math.isfinite(value)
    )
