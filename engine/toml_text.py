"""Settings as text: TOML to a table, and the keys that are called otherwise now. Pure."""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

MOST_KEY_PARTS: Final = 60
"""Parts of one dotted key: ``tomllib`` needs memory by the square of their number."""

_LONG_KEY: Final = re.compile(
    rf"""(?<![\w\-])(?:(?:[\w\-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MOST_KEY_PARTS}}}"""
)

RENAMED: Final[dict[str, str]] = {
    "sync.api_key": "sync.amplitude_api_keys",
    "sync.api_keys": "sync.amplitude_api_keys",
    "sync.amplitude_api_key": "sync.amplitude_api_keys",
    "sync.intercom.token": "sync.intercom.access_token",
    "sync.events.properties": "sync.events.metadata",
    "sync.delivery.lanes": "sync.intercom.max_in_flight",
    "sync.delivery.twin_window_s": "sync.delivery.same_second_window_s",
    "http.port": "http.listen",
    "http.host": "http.listen",
    "admin.port": "admin.listen",
    "admin.host": "admin.listen",
}
"""Keys that are called otherwise here, or are no more, and the key to use instead."""


def read_toml(text: str) -> dict[str, Any]:
    """Return the table of a text.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML.
        ValueError, RecursionError: it has digits, parts of a key or levels without end.
    """
    if _LONG_KEY.search(text):
        raise ValueError(f"a key of more than {MOST_KEY_PARTS} parts")
    return tomllib.loads(text)
