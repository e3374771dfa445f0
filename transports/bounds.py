"""Bounds of settings, as annotated types.

The settings' structs use them, and so do the constructors of sources, so that ``[sources.NAME]`` is
checked like ``[http]`` and ``[forward]``.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MAX_SECONDS: Final = 3_155_760_000.0
"""A hundred years: a time of today plus this is still valid for clocks and SQLite."""

MIN_SECONDS: Final = 0.001
"""Clocks and timers are not finer; a shorter pause would be none."""

MAX_COUNT: Final = 10_000_000
"""Connections, calls, lines or events at once: more than one process can hold."""

MAX_BYTES: Final = 1 << 50
"""A pebibyte: more than any disk under a spool, and with a thousand syncs still a 64-bit sum."""

MAX_MEMORY_BYTES: Final = 1 << 40
"""A tebibyte: more than the memory of any machine this runs on."""

MAX_RATE: Final = 1e9
"""Calls, requests or events in a second or a minute: more than any machine makes."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]
PositiveNumber = Annotated[float, msgspec.Meta(ge=1 / MAX_RATE, le=MAX_RATE)]
PositiveSeconds = Annotated[float, msgspec.Meta(ge=MIN_SECONDS, le=MAX_SECONDS)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
EventBytes = Annotated[int, msgspec.Meta(ge=1_024, le=MAX_MEMORY_BYTES)]
HeldBytes = Annotated[int, msgspec.Meta(ge=20_000_000, le=MAX_MEMORY_BYTES)]
LineBytes = Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMORY_BYTES)]
