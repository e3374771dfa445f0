"""What goes wrong, by consequence; causes travel as fields.

EngineError
├── SettingsError     nothing will work until somebody changes the settings (exit 2)
├── DataDirInUse      another process has the data directory (exit 4)
├── SpoolError        the spool cannot do it now: a batch is refused, a delivery waits
│   └── SpoolDamaged  it cannot do it at all: what is asked for is damaged
├── NotNow            a call has no answer: its user later (``delivery.calls``)
└── Undeliverable     this record never
"""

from __future__ import annotations

import msgspec

from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.transports.reasons import RefusalReason


class EngineError(Exception):
    """Root of everything the engine raises on purpose."""


class SettingsError(EngineError):
    """The settings cannot be used; the message names the key and what was expected."""


class DataDirInUse(EngineError):
    """Another process writes in this data directory."""


class SpoolError(EngineError):
    """The spool cannot take or change anything now.

    ``reason``: ``SPOOL_FULL`` (its cap is reached), ``DISK_FULL`` (no free bytes left on it),
    ``SPOOL_FAILING`` (disk or database error), or ``DRAINING`` (it is closed).
    """

    def __init__(self, reason: RefusalReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class SpoolDamaged(SpoolError):
    """What a job asks for cannot be read or written, however often it is tried."""


class Failure(msgspec.Struct, frozen=True):
    """Why a delivery failed, as kept in dead letters. ``status`` 0: there was no answer."""

    reason: DeadReason
    status: int = 0
    code: str = ""
    message: str = ""
    request_id: str = ""


class Undeliverable(EngineError):
    """Sending this record again would be refused again; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason} {failure.status} {failure.code} {failure.message}")
        self.failure = failure
