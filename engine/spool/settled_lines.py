"""The log's lines about the records that one transaction settles, written after its commit.

Each settled record has a line with its id, user, event type and reason; *delivered* has one only at
level debug. Dead letters are warnings, parked users are info, drops are debug. The store keeps the
lines until its commit, so that a rollback leaves none, and so that records which the store itself
buries (expired, damaged) have a line as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DeadReason, DropReason, Failure
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadRow
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import decode_head, legible

_log = structlog.get_logger(__name__)

MOST_LINES: Final = 2 * logs.KIND_LINES_PER_S
"""Lines that a transaction keeps: the log writes no more of one kind in a second."""


class SettledLines:
    """The lines of one transaction."""

    def __init__(self) -> None:
        self._lines: list[Callable[[], None]] = []
        self._more = 0

    def dead(self, sync: str, record: Record, failure: Failure) -> None:
        """Keep a line about a record that became a dead letter."""
        why = {**_why(failure), "means": failure.reason.means}
        self._keep(lambda: _log.warning("dead letter", sync=sync, **_about(record), **why))

    def dead_of_relay(self, relay: str, letter: DeadLetter, failure: Failure) -> None:
        """Keep a line about an event of a relay that became a dead letter."""
        about = {"user": letter.user_key, "event_type": letter.event_type, "record": letter.id}
        why = {**_why(failure), "means": failure.reason.means}
        self._keep(lambda: _log.warning("dead letter", relay=relay, **about, **why))

    def dead_at_intake(self, sync: str, id_: int, row: DeadRow) -> None:
        """Keep a line about an event that became a dead letter at intake."""
        where = {"origin": row.origin, "line": row.line}
        user = {"user": row.user_key} if row.user_key else {}
        why = {"reason": row.reason, "message": row.message, "means": DeadReason(row.reason).means}
        self._keep(
            lambda: _log.warning(
                "dead letter",
                sync=sync,
                record=id_,
                **{**about_raw(row.raw), **user},
                **why,
                **where,
            )
        )

    def parked(self, sync: str, record: Record, failure: Failure, wake_at_ms: int) -> None:
        """Keep a line about a record that failed, and for which its user waits."""
        why = {**_why(failure), "wake_at_ms": wake_at_ms}
        self._keep(lambda: _log.info("user parked", sync=sync, **_about(record), **why))

    def dropped(self, sync: str, letter: DeadLetter, reason: str) -> None:
        """Keep a line about a dead letter that was discarded, or dropped by a replay."""
        if logs.debugging():
            about = {**about_raw(letter.raw), "record": letter.id, "user": letter.user_key}
            self._keep(lambda: _log.debug("dropped", sync=sync, **about, reason=reason))

    def duplicates(self, sync: str, records: Iterable[Record]) -> None:
        """Keep a line about each record that was accepted before."""
        if logs.debugging():
            for record in records:
                self._keep(partial(log_dropped, record, DropReason.DUPLICATE, sync=sync))

    def duplicate_at_intake(self, sync: str, row: DeadRow) -> None:
        """Keep a line about a malformed event that came before."""
        if logs.debugging():
            self._keep(partial(log_dropped_raw, row.raw, DropReason.DUPLICATE, sync=sync))

    def _keep(self, line: Callable[[], None]) -> None:
        if len(self._lines) < MOST_LINES:
            self._lines.append(line)
        else:
            self._more += 1

    def write(self) -> None:
        """Write the lines, after the commit."""
        if not self._lines:
            return
        lines, more = self._lines, self._more
        self.forget()
        if more:
            lines.append(lambda: _log.warning("more was settled with these", count=more))
        with suppress(Exception):  # the records are settled, even if the log fails
            for line in lines:
                line()

    def forget(self) -> None:
        """Drop the lines, after a rollback."""
        if self._lines:
            self._lines, self._more = [], 0


def log_dropped(record: Record, reason: str, **more: str) -> None:
    """Log a record that a rule dropped."""
    if logs.debugging():
        _log.debug("dropped", **_about(record), reason=str(reason), **more)


def log_dropped_raw(raw: bytes, reason: str, **more: str) -> None:
    """Log an event that a rule dropped before it was a record."""
    if logs.debugging():
        _log.debug("dropped", **about_raw(raw), reason=str(reason), **more)


def log_delivered(record: Record) -> None:
    """Log a record that Intercom has."""
    if logs.debugging():
        _log.debug("delivered", **_about(record))


def _about(record: Record) -> dict[str, Any]:
    of_event = about_raw(record.raw)
    return {**of_event, "record": record.id, "user": record.user_key}


def about_raw(raw: bytes) -> dict[str, Any]:
    """Return the user and the type of an event; empty if it cannot be read. Never raises."""
    head = decode_head(raw)
    if isinstance(head, BadEvent):
        head = legible(raw)
        if head == Head():
            return {}
    return {"user": head.user_id or head.device_id, "event_type": head.event_type}


def _why(failure: Failure) -> dict[str, Any]:
    return {
        "reason": failure.reason.value,
        "status": failure.status,
        "code": failure.code,
        "message": failure.message,
        "request_id": failure.request_id,
    }
