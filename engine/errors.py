"""The errors of the engine, one class for each consequence; causes travel as fields.

EngineError
├── SettingsError     nothing works until the settings are changed (exit 2)
├── DataDirInUse      another process has the data directory (exit 4)
├── SpoolError        the spool fails now: a batch is refused, a delivery waits
│   └── SpoolDamaged  rows that some work needs are damaged: no later try helps
├── SelectionEnded    the last of some dead letters has gone: they are looked at again
├── NotNow            a call has no answer: its user waits (``delivery.calls``)
└── Undeliverable     Intercom refuses this record for good (``delivery.calls``)
"""

from __future__ import annotations

from amplitude_intercom.transports.reasons import RefusalReason


class EngineError(Exception):
    """Root of all errors that the engine raises on purpose."""


class SettingsError(EngineError):
    """The settings cannot be used; the message names the key and what was expected."""


class DataDirInUse(EngineError):
    """Another process has this data directory locked."""


class SpoolError(EngineError):
    """The spool cannot be changed now; a transaction that raises this has changed nothing.

    ``reason``: ``SPOOL_FULL`` (its cap is reached), ``DISK_FULL`` (the disk has no free bytes),
    ``SPOOL_FAILING`` (disk or database error), or ``DRAINING`` (it is closed).
    """

    def __init__(self, reason: RefusalReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class SelectionEnded(EngineError):
    """The letter at which a selection of dead letters ends has gone; nothing was done."""


class SpoolDamaged(SpoolError):
    """Rows that some work needs are damaged: each try has failed, and later ones will."""
