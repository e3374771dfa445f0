"""Dates in any spelling, as Unix seconds: the only form in which Intercom takes a time.

Source: API description 2.16.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from amplitude_intercom.transports.amplitude_times import MAX_TIME, in_milliseconds, parse_time

DATE_ENDING: Final = "_date"
"""Intercom shows a metadata key with this ending as a date (API description 2.16)."""

_DATE_KEY: Final = re.compile(r"(?:^|[_\s-])(?:at|date)$|(?:At|Date)$", re.ASCII)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d.{0,40})?|\d{8}", re.ASCII)
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d.{0,40}(?:Z|[+-]\d\d:?\d\d)", re.A)
_TIMESTAMP: Final = re.compile(r"-?\d{9,20}", re.ASCII)
"""A date as the digits of a number. A shorter number may as well be a quantity."""

_MILLISECONDS: Final = 10**11
"""A date from this number on is in milliseconds: in seconds it would be the year 5138."""


@lru_cache(1_024)
def is_date_key(key: str) -> bool:
    """Return whether a property name says that it is a date, as ``renewed_at`` does."""
    return bool(_DATE_KEY.search(key))


def is_date_time(value: Any) -> bool:
    """Return whether a value is a text with a date, a time and an offset from UTC."""
    return type(value) is str and value[10:11] == "T" and bool(_DATE_TIME.fullmatch(value))


def to_seconds(value: Any) -> int | None:
    """Return the Unix seconds of a date; None if the value is not one.

    A date is an ISO text, eight digits of year, month and day, or a number of seconds,
    milliseconds or less, also as text.
    """
    if isinstance(value, str):
        return _text_to_seconds(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -MAX_TIME < value < MAX_TIME:  # false for NaN too
        return None
    whole = int(value)
    seconds = in_milliseconds(whole) // 1000 if abs(whole) >= _MILLISECONDS else whole
    return seconds if abs(seconds) < _MILLISECONDS else None


def _text_to_seconds(text: str) -> int | None:
    if _TIMESTAMP.fullmatch(text):
        return to_seconds(int(text))
    if not _DATE.fullmatch(text):
        return None
    try:
        return parse_time(text) // 1000
    except ValueError:
        return None
