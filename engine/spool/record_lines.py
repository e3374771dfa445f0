"""The log's lines about single records: delivered, or dropped."""

from __future__ import annotations

from typing import Any

import structlog

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import decode_head, legible

_log = structlog.get_logger(__name__)


def log_dropped(record: Record, reason: str, **more: str) -> None:
    """Log a record that a rule dropped."""
    if logs.debugging():
        _log.debug("dropped", **about_record(record), reason=str(reason), **more)


def log_dropped_raw(raw: bytes, reason: str, **more: str) -> None:
    """Log an event that a rule dropped before it was a record."""
    if logs.debugging():
        _log.debug("dropped", **about_raw(raw), reason=str(reason), **more)


def log_delivered(record: Record) -> None:
    """Log a record that Intercom has."""
    if logs.debugging():
        _log.debug("delivered", **about_record(record))


def about_record(record: Record) -> dict[str, Any]:
    """Return the user, the type and the number of a record, for a log line."""
    of_event = about_raw(record.raw)
    return {**of_event, "record": record.id, "user": record.user_key}


def about_raw(raw: bytes) -> dict[str, Any]:
    """Return the user and the type of an event, as far as it can be read. Never raises."""
    head = decode_head(raw)
    if isinstance(head, BadEvent):
        head = legible(raw)
        if head == Head():
            return {}
    return {"user": head.user_id or head.device_id, "event_type": head.event_type}
