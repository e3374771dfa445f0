"""Bodies of requests to Intercom. The same value gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.envelope import Adjustment, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason

MAX_BODY_BYTES: Final = 256_000
"""Bytes of a body. Intercom documents no limit."""

MOST_THAT_FIT: Final = (MAX_BODY_BYTES - 4_096) // (4 * 3 * 255 + 64)
"""Keys that fit with any values: three texts a key (a link has two), four bytes a character."""

ATTRIBUTE_PREFIX: Final = "custom_attributes."

_encoder = msgspec.json.Encoder()


def event_body(event: Mapping[str, Any], second: int | None = None) -> bytes:
    """Return the body of ``POST /events``; ``second`` replaces the event's own ``created_at``."""
    if second is None or second == event["created_at"]:
        return _encoder.encode(event)
    return _encoder.encode({**event, "created_at": second})


def contact_body(fields: Mapping[str, Any]) -> bytes:
    """Return the body of a contact write; custom attributes are nested."""
    body: dict[str, Any] = {}
    custom: dict[str, Any] = {}
    for name, value in fields.items():
        if name.startswith(ATTRIBUTE_PREFIX):
            custom[name[len(ATTRIBUTE_PREFIX) :]] = value
        else:
            body[name] = value
    if custom:
        body["custom_attributes"] = custom
    return _encoder.encode(body)


def creation_body(identity: Identity, fields: Mapping[str, Any]) -> bytes:
    """Return the body of ``POST /contacts`` for a user with these fields."""
    return contact_body({"role": "user", identity.field: identity.value, **fields})


def cut_to_size(body: Mapping[str, Any], droppable: dict[str, Any]) -> Sequence[Adjustment]:
    """Remove the last keys of ``droppable``, a part of ``body``, until ``body`` is small enough.

    A body of up to ``MOST_THAT_FIT`` keys always is, so callers need not ask for those.
    """
    adjustments = []
    while droppable and len(_encoder.encode(body)) > MAX_BODY_BYTES:
        name, _ = droppable.popitem()
        what = "left out, the request is too large"
        adjustments.append(Adjustment(AdjustmentReason.TOO_LARGE, name, what))
    return adjustments
