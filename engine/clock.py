"""The clock by which delivery waits: the running loop's."""

from __future__ import annotations

import asyncio


def loop_time_s() -> float:
    """Return the running loop's clock; ``anyio.current_time`` first finds out whose loop it is."""
    return asyncio.get_running_loop().time()
