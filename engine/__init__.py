"""The engine: Amplitude events in, Intercom contacts and events out.

A program needs no more than these names: ``Engine`` runs the ``Settings`` that ``from_table`` or
``load`` has read; ``DeadLetterQuery`` says which dead letters are meant. What may go wrong:

    EngineError
    ├── SettingsError    the settings cannot be used; nothing runs before somebody changes them
    ├── DataDirInUse     another process has the data directory
    └── SpoolError       the spool cannot do it now
    BadEvents            some of the events are not what Amplitude takes; none is stored
    Refused              not now; nothing is stored, the same events may come again
    UnknownApiKey        no sync takes the events of this Amplitude API key
    UnknownSync          there is no sync of this name
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amplitude_intercom.engine.app import BadEvents, Engine
    from amplitude_intercom.engine.config import from_table, load
    from amplitude_intercom.engine.errors import (
        DataDirInUse,
        EngineError,
        SettingsError,
        SpoolError,
    )
    from amplitude_intercom.engine.settings import Settings
    from amplitude_intercom.engine.spool.letters import DeadLetterQuery
    from amplitude_intercom.transports.contract import Receipt
    from amplitude_intercom.transports.errors import Refused, UnknownApiKey, UnknownSync

_HOMES = {
    "BadEvents": ".app",
    "DataDirInUse": ".errors",
    "DeadLetterQuery": ".spool.letters",
    "Engine": ".app",
    "EngineError": ".errors",
    "Receipt": "amplitude_intercom.transports.contract",
    "Refused": "amplitude_intercom.transports.errors",
    "Settings": ".settings",
    "SettingsError": ".errors",
    "SpoolError": ".errors",
    "UnknownApiKey": "amplitude_intercom.transports.errors",
    "UnknownSync": "amplitude_intercom.transports.errors",
    "from_table": ".config",
    "load": ".config",
}

__all__ = [
    "BadEvents",
    "DataDirInUse",
    "DeadLetterQuery",
    "Engine",
    "EngineError",
    "Receipt",
    "Refused",
    "Settings",
    "SettingsError",
    "SpoolError",
    "UnknownApiKey",
    "UnknownSync",
    "from_table",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: ``amplitude-intercom --help`` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
