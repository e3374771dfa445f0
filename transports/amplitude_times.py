"""Times as Amplitude's dialects write them, in Unix milliseconds. Pure."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final


def kind_of(value: object) -> str:
    """Return the name of a value's JSON type, with its article."""
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "null" if value is None else "a number")


def parse_time(value: Any) -> int:
    """Return Unix milliseconds of a time as Amplitude's dialects write it.

    A whole number, or its digits as text, in milliseconds, seconds, micro- or nanoseconds, which
    its size tells apart (``in_milliseconds``). Or a date as text: ``2020-11-24 09:59:55.977000``,
    ``T`` or space, 0 to 6 fraction digits, ``Z``, ``UTC`` or an offset, none of them meaning UTC,
    the date with dashes or colons (Export API page; real files). A leap second, ``23:59:60``, is
    the second after it.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return in_milliseconds(value)
    if isinstance(value, float) and value.is_integer():
        return in_milliseconds(int(value))
    if isinstance(value, str):
        text = value.strip()
        return in_milliseconds(int(text)) if NUMBER.fullmatch(text) else _parse_date(text)
    raise ValueError(f"not a time: {kind_of(value)}")


NUMBER: Final = re.compile(r"-?(?:[0-9]{1,7}|[0-9]{9,20})")
"""A number as text; eight digits are a date without its dashes."""

_DATE: Final = re.compile(r"[0-9]{8}|[0-9]{4}-.{1,60}", re.DOTALL)

_LEAP_SECOND: Final = re.compile(r"(?<=[0-9]{2}:[0-9]{2}:)60")


_WITH_COLONS: Final = re.compile(r"[0-9]{4}:[0-9]{2}:[0-9]{2}[T ]")


def _parse_date(text: str) -> int:
    text = text.removesuffix(" UTC")
    if _WITH_COLONS.match(text):
        text = text[:10].replace(":", "-") + text[10:]
    before, leaps = _LEAP_SECOND.subn("59", text, count=1) if _DATE.fullmatch(text) else ("", 0)
    try:
        moment = dt.datetime.fromisoformat(before)
    except ValueError:
        raise ValueError(f"not a time: {text[:40]!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MILLISECOND + 1000 * leaps


MAX_TIME: Final = 10**20
"""Least number that is no time in any unit."""


def in_milliseconds(time: int) -> int:
    """Return a time in milliseconds. Its size tells seconds, micro- and nanoseconds apart.

    Numbers that are a time from 1973 to 5138 in milliseconds are returned unchanged.

    Raises:
        ValueError: too many digits for any of these units.
    """
    if abs(time) >= MAX_TIME:
        raise ValueError("not a time: a number of too many digits")
    if 10**8 <= time < 10**11:
        return time * 1000
    while time >= 10**14:
        time //= 1000
    return time


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)
