"""User properties as values of a contact's fields and custom attributes, by type.

A custom attribute has a type, which the workspace chose: text, number, boolean or date
(intercom-node #215; API description 2.16, ``/data_attributes``). A value of another type is
converted if that loses nothing, and left out otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.dates import is_date_key, is_date_time, to_seconds
from amplitude_intercom.engine.rules.fitting import (
    AS_TEXT,
    Fitted,
    Note,
    Style,
    as_date,
    fit_array,
    fit_scalar,
    is_plain,
)
from amplitude_intercom.engine.rules.numerals import MAX_WHOLE
from amplitude_intercom.engine.rules.texts import MAX_INTERCOM_TEXT, is_short

_PLAIN: Final = Style()


def fit_attribute(key: str, value: Any, data_type: str, style: Style) -> Fitted:
    """Return a user property as a value of ``data_type``, if that loses nothing.

    ``data_type`` is one of Intercom's types (``string``, ``integer``, ``float``, ``boolean``,
    ``date``), ``url``, ``email``, ``role``, or empty if the type is not known.
    """
    kind = type(value)
    if data_type:
        if _KINDS.get(data_type) is kind and is_plain(value, style):  # the usual case first
            return value, None
    elif is_plain(value, style) and not (is_date_key(key) or is_date_time(value)):
        return value, None
    if isinstance(value, dict):
        return None, Note(AdjustmentReason.NESTED_LEFT_OUT, "a nested object, left out")
    note: Note | None = None
    if isinstance(value, list):
        value, note = fit_array(value, style)
    if value is None:
        return None, note
    if data_type:
        converted = _CONVERT.get(data_type, _CONVERT["string"])(value)
        if converted is None:
            return None, Note(
                AdjustmentReason.TYPE_MISMATCH, f"not a value of type {data_type}, left out"
            )
        if type(converted) is not type(value) or converted != value:
            trimmed = "trimmed, in lower case"
            what = trimmed if data_type == "email" else f"converted to {data_type}"
            note = note or Note(AdjustmentReason.TYPE_CONVERTED, what)
        value = converted
    else:
        if note is None and (is_date_key(key) or is_date_time(value)):
            value, note = as_date(value)
        value = _to_text(value) if style.stringify else value
    if isinstance(value, bool):
        return value, note
    fitted, other = fit_scalar(value, _PLAIN)
    return fitted, other or note


_KINDS: Final[Mapping[str, type]] = {"string": str, "integer": int, "float": int}


def type_for(key: str, value: Any, style: Style) -> str | None:
    """Return the type of the attribute to create for a value; None if no type fits.

    A whole number gets ``float`` too, because the next value may be a fraction.
    """
    if not is_date_key(key):  # the two usual cases first
        if type(value) is str and value[10:11] != "T":
            return "string"
        if type(value) is int and is_plain(value, style):
            return "float"
    fitted, note = fit_attribute(key, value, "", style)
    if isinstance(fitted, bool):
        return "boolean"
    if fitted is None or isinstance(fitted, str):
        return None if fitted is None else "string"
    dated = is_date_key(key) or (
        note is not None and note.reason is AdjustmentReason.DATE_CONVERTED
    )
    return "date" if dated else "float"


def _to_text(value: Any) -> str | None:
    return value if isinstance(value, str) else fit_scalar(value, AS_TEXT)[0]


def _to_integer(value: Any) -> int | None:
    number = _to_float(value)
    return int(number) if number is not None and number == int(number) else None


_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d{0,15})?|\.\d{1,15})(?:e[+-]?\d{1,2})?", re.ASCII
)
"""A number as text. Leading zeros make a code of it: ``02138`` is not 2138."""


def _to_float(value: Any) -> int | float | None:
    if isinstance(value, str):
        text = value.strip().lower()
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if isinstance(value, bool) or not -MAX_WHOLE < value < MAX_WHOLE:  # false for NaN too
        return None
    number: int | float = value
    return number


def _to_boolean(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    return None


def _to_url(value: Any) -> str | None:
    return value if is_short(value) and value.startswith(("http://", "https://")) else None


def _to_email(value: Any) -> str | None:
    text = value.strip().lower() if isinstance(value, str) else ""
    local, _, domain = text.partition("@")
    fits = (
        local
        and domain
        and len(text) <= MAX_INTERCOM_TEXT
        and text.isprintable()
        and " " not in text
    )
    return text if fits else None


def _to_role(value: Any) -> str | None:
    return value if value in ("user", "lead") else None


_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "string": _to_text,
    "integer": _to_integer,
    "float": _to_float,
    "boolean": _to_boolean,
    "date": to_seconds,
    "datetime": to_seconds,
    "url": _to_url,
    "email": _to_email,
    "role": _to_role,
}
"""The conversion of a value to each type; it returns None if that would lose something."""
