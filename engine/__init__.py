"""The engine: Amplitude events in, Intercom contacts and events out. See ``engine.app.Engine``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amplitude_intercom.engine.app import BadEvents, Engine
    from amplitude_intercom.engine.config import Settings, from_table, load

__all__ = ["BadEvents", "Engine", "Settings", "from_table", "load"]

_HOMES = {"Engine": "app", "BadEvents": "app"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command's ``--help`` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'config')}"), name)
