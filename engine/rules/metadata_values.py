"""Event properties as metadata of an Intercom event.

A nested object is flattened into several keys, because Intercom does not support nested values
(intercom-ruby #244; help article 5245634). Rich links and amounts of money stay objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.dates import DATE_ENDING
from amplitude_intercom.engine.rules.fitting import (
    Fitted,
    Note,
    Style,
    as_date,
    fit_array,
    fit_scalar,
    is_plain,
)
from amplitude_intercom.engine.rules.numerals import MAX_WHOLE
from amplitude_intercom.engine.rules.texts import MAX_NAME, fit_key, is_blank, is_short

MAX_DEPTH: Final = 8
"""Levels of nested objects that are flattened. Deeper objects are left out."""

MAX_SPREAD: Final = 256
"""Values of one object that are read: more than twice the keys that metadata can have."""

SEPARATOR: Final = "_"
"""Joins the names of a flattened key. Intercom allows neither ``.`` nor brackets in keys."""


def is_money(value: Mapping[str, Any]) -> bool:
    """Return whether an object is one of Intercom's amounts of money."""
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
    """Return whether an object is one of Intercom's rich links."""
    if len(value) != 2 or "url" not in value or "value" not in value:
        return False
    url, text = value["url"], value["value"]
    return is_short(url) and is_short(text) and url.startswith(("http://", "https://"))


Spread = list[tuple[str, Any, Note | None]]
"""Metadata keys, each with its value, None if it is left out, and the adjustment made, if any."""


def spread(key: str, value: Any, style: Style, dated: bool = False) -> Spread:
    """Return a property as metadata: one key, or several for an object.

    ``key`` must be legal (``fit_key``). ``dated`` marks a property that Intercom shows as a date,
    or that is one by the settings.
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
        if not name.isidentifier() or len(key) > MAX_NAME:  # rare, and costly to clean
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
    """Return the legal key of a nested value; empty if its name is blank."""
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
