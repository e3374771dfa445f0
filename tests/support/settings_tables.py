"""Settings as the tables that they are read from."""

from __future__ import annotations

from typing import Any

import msgspec

from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Settings


def to_table(settings: Settings) -> dict[str, Any]:
    """Return the table that ``from_table`` would read as these settings.

    Secrets come out as their source; one that was spelled out comes out as ``***``.
    """
    table: dict[str, Any] = _without_none(msgspec.to_builtins(settings, enc_hook=_encode_secret))
    return table


def _without_none(value: Any) -> Any:
    """TOML has no null: a key without value is left out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _encode_secret(value: object) -> str:
    if isinstance(value, Secret):
        return value.source
    raise NotImplementedError(type(value))
