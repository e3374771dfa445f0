"""Checks of written values: standard fields of a contact, metadata of an event."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final

from amplitude_intercom.transports.sandbox.refusals import Json, invalid

MAX_STRING: Final = 255  # of a metadata value and of a custom attribute (help articles)

ILLEGAL_IN_KEYS: Final = frozenset(".$`~!@#%^&*'{}|\\\"\0")
"""Not allowed in names of metadata keys and custom attributes (help article on events)."""


# What may be written

WRITABLE: Final[Mapping[str, tuple[type, ...]]] = {
    "role": (str,),
    "external_id": (str,),
    "email": (str,),
    "phone": (str,),
    "name": (str,),
    "avatar": (str,),
    "owner_id": (str, int),
    "unsubscribed_from_emails": (bool,),
    "signed_up_at": (int,),
    "last_seen_at": (int,),
}
_ROLES: Final = {"user": "user", "lead": "lead", "contact": "user"}  # the last one: recordings


def standard_fields(sent: Json) -> Json:
    """Return the standard fields of a write, checked; those left out stay left out.

    A null ``external_id`` is ignored and a null ``email`` becomes an empty string (recordings).

    Raises:
        Refusal: a value has a wrong type, or ``email_verified`` stands without ``email``.
    """
    fields: Json = {}
    for field, kinds in WRITABLE.items():
        if field in sent:
            value = sent[field]
            if value is not None and type(value) not in kinds:
                raise invalid(f"{field} is invalid")
            fields[field] = value
    if not fields.get("external_id"):
        fields.pop("external_id", None)
    if "email" in fields:
        fields["email"] = fields["email"] or ""
    if "unsubscribed_from_emails" in fields:
        fields["unsubscribed_from_emails"] = bool(fields["unsubscribed_from_emails"])
    if fields.get("owner_id") is not None:
        fields["owner_id"] = str(fields["owner_id"])
    return _with_role(fields, sent)


def _with_role(fields: Json, sent: Json) -> Json:
    if fields.get("role") is None:
        fields.pop("role", None)
    elif fields["role"] not in _ROLES:
        raise invalid("role is invalid")
    else:
        fields["role"] = _ROLES[fields["role"]]
    if "email_verified" in sent and not fields.get("email"):
        raise invalid("email_verified needs an email")
    return fields


def _is_metadata_value(value: object) -> bool:
    """Return whether a value is a text, a number, a rich link or money (API description).

    Booleans are none of the kinds that are listed; refusing them is a choice.
    """
    if isinstance(value, dict):
        return _is_rich_link(value) or _is_money(value)
    if isinstance(value, str):
        return len(value) <= MAX_STRING
    return value is None or type(value) in (int, float)


def _is_rich_link(value: Json) -> bool:
    return value.keys() == {"url", "value"} and all(
        isinstance(part, str) for part in value.values()
    )


def _is_money(value: Json) -> bool:
    """Return whether this is an amount in cents; zero is let through (a choice)."""
    amount, currency = value.get("amount"), value.get("currency")
    return len(value) == 2 and type(amount) is int and amount >= 0 and isinstance(currency, str)


def check_metadata(sent: object, kept: int) -> Json:
    """Return the first ``kept`` keys of an event's metadata; surplus ones are ignored in silence.

    Raises:
        Refusal: not an object; a nested value that is no rich link and no amount of money
            (intercom-ruby #244); an illegal character in a key, two keys that are equal but for
            case, or a string too long (choices).
    """
    if sent is None:
        return {}
    if not isinstance(sent, dict) or len({key.lower() for key in sent}) < len(sent):
        raise invalid("Invalid metadata")
    for key, value in sent.items():
        if not (ILLEGAL_IN_KEYS.isdisjoint(key) and _is_metadata_value(value)):
            raise invalid("Invalid metadata")
    return dict(islice(sent.items(), kept))
