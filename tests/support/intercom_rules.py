"""What Intercom takes, written down once more from its own rules: it knows nothing of the engine.

Sources: API description 2.16 (``POST /events``, ``POST /contacts``, ``/data_attributes``), help
articles 175 "Set up event tracking", 179 "Custom user attributes", 5245634 "Event limits".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

UNWRITTEN = set(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))  # control characters
LINES = set("\t\n\r")
ILLEGAL_IN_KEYS = set(".$~`!@#%^&*'{}|\\\"") | UNWRITTEN
LONGEST_BODY = 256_000
CURRENCY = re.compile(r"[A-Za-z]{3}")
STANDARD = {
    "role": str,
    "external_id": str,
    "email": str,
    "phone": str,
    "name": str,
    "avatar": str,
    "owner_id": int,
    "signed_up_at": int,
    "last_seen_at": int,
    "unsubscribed_from_emails": bool,
}
ATTRIBUTE = {
    "string": (str,),
    "integer": (int,),
    "float": (int, float),
    "boolean": (bool,),
    "date": (int,),
}


def faults_of_event(body: bytes, *, kept: int, now_s: int) -> list[str]:
    """What is wrong with the body of ``POST /events``; nothing is."""
    if len(body) > LONGEST_BODY:
        return ["too large"]
    event = json.loads(body)
    faults = [f"key {key}" for key in event if key not in _EVENT_KEYS]
    if len({"user_id", "email", "id"} & event.keys()) != 1:
        faults.append("not one contact")
    name, second = event.get("event_name"), event.get("created_at")
    if not isinstance(name, str) or not name.strip() or ({".", "$"} | UNWRITTEN) & set(name):
        faults.append(f"event_name {name!r}")
    if type(second) is not int or not 0 <= second <= now_s:
        faults.append(f"created_at {second!r}")
    return faults + _faults_of_metadata(event.get("metadata", {"absent": 1}), kept)


_EVENT_KEYS = {"event_name", "created_at", "user_id", "email", "id", "metadata"}


def _faults_of_metadata(metadata: Any, kept: int) -> list[str]:
    if not isinstance(metadata, dict) or not metadata:
        return ["metadata is no object, or an empty one"]
    faults = [f"metadata {k!r}: {v!r}" for k, v in metadata.items() if not _is_metadata(v)]
    faults += [f"metadata key {k!r}" for k in metadata if not k.strip() or ILLEGAL_IN_KEYS & set(k)]
    if len({key.lower() for key in metadata}) != len(metadata):
        faults.append("keys that are equal but for case")
    if len(metadata) > kept:
        faults.append("more keys than are kept")
    return faults


def _is_metadata(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_money(value) or _is_rich_link(value)
    return _is_text(value) or _is_number(value)


def _is_money(value: dict[str, Any]) -> bool:
    amount, currency = value.get("amount"), value.get("currency")
    return (
        value.keys() == {"amount", "currency"}
        and type(amount) is int
        and amount >= 0
        and isinstance(currency, str)
        and CURRENCY.fullmatch(currency) is not None
    )


def _is_rich_link(value: dict[str, Any]) -> bool:
    return (
        value.keys() == {"url", "value"}
        and all(map(_is_text, value.values()))
        and value["url"].startswith(("http://", "https://"))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 255 and not (UNWRITTEN - LINES) & set(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def faults_of_contact(body: bytes, attributes: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with the body of a contact write; ``attributes``: name → type, if known."""
    if len(body) > LONGEST_BODY:
        return ["too large"]
    contact = json.loads(body)
    custom = contact.pop("custom_attributes", {})
    faults = [f"{k}: {v!r}" for k, v in contact.items() if not _is_standard(k, v)]
    for name, value in custom.items():
        if attributes is None:
            fits = _is_text(value) or _is_number(value) or isinstance(value, bool)
        else:
            fits = _fits(value, attributes.get(name))
        if not fits and value is not None:
            faults.append(f"custom attribute {name!r}: {value!r}")
    return faults


def _is_standard(field: str, value: Any) -> bool:
    if value is None:
        return field in STANDARD
    if type(value) is not STANDARD.get(field):
        return False
    if field.endswith("_at"):
        return isinstance(value, int) and abs(value) < 10**11  # seconds
    return not isinstance(value, str) or _is_text(value)


def _fits(value: Any, data_type: str | None) -> bool:
    if data_type is None or type(value) not in ATTRIBUTE[data_type]:
        return False
    return _is_text(value) if isinstance(value, str) else True
