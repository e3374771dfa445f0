"""A local Intercom, to try things with and to test against: ``sandbox.sandbox`` has its rules."""

from amplitude_intercom.transports.sandbox.sandbox import (
    Fault,
    InProcess,
    JournalEntry,
    Sandbox,
    serve,
)

__all__ = ["Fault", "InProcess", "JournalEntry", "Sandbox", "serve"]
