"""Typed clients and servers of outside interfaces; no policy lives here.

What a source is, is said in ``transports.contract``; its names are to be imported from here.
"""

from amplitude_intercom.transports.contract import (
    Batch,
    Intake,
    Receipt,
    Source,
    Ticket,
    batch_of,
)

__all__ = ["Batch", "Intake", "Receipt", "Source", "Ticket", "batch_of"]
