"""Internal faults: exceptions that the program did not foresee, logged and kept as a failure."""

from __future__ import annotations

from typing import Final

import structlog

from amplitude_intercom.engine.reasons import DeadReason, Failure

_log = structlog.get_logger(__name__)

MAX_FAULT_TEXT: Final = 500
"""Characters of an exception's text in a dead letter; the log has the traceback."""


def internal_failure(fault: Exception, **about: object) -> Failure:
    """Log a fault with its traceback; return the failure of the record that it costs."""
    _log.error("internal fault", exc_info=fault, **about)
    return Failure(DeadReason.INTERNAL, message=describe(fault))


def describe(fault: BaseException) -> str:
    """Return an exception in one line of bounded length. Never raises."""
    try:
        text = f"{type(fault).__name__}: {fault}"
    except Exception:  # ``str`` itself may fail: a number of 5,000 digits does
        text = type(fault).__name__
    return text[:MAX_FAULT_TEXT].encode("utf-8", "backslashreplace").decode()
