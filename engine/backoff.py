"""Waits between tries: pure functions; the caller brings the jitter.

Record-level retries spread a number of attempts over a window, each wait longer than the last, as
Amplitude's own streams do (10 attempts over 4 hours; the spacing is not documented, so it is ours).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

FIRST_WAIT_S: Final = 6.0
LONGEST_WAIT_S: Final = 60.0
"""The first and the longest wait of a user while its failure may be its own or the endpoint's."""

GROWTH: Final = 2.5
"""The largest factor between two waits: 10 attempts over 4 h begin 6 s apart and end 2.4 h apart.
A short window takes a smaller factor, so that the first wait stays ``FIRST_WAIT_S``."""


def retry_delay_s(failures: int, attempts: int, window_s: float, jitter: float) -> float:
    """Return the seconds to wait after the ``failures``-th failure (1 = the first).

    ``attempts`` calls fit into ``window_s``; ``jitter`` is in [0, 1) and moves the wait by ±10 %.
    """
    waits = max(1, attempts - 1)
    wait: float = _last_wait_s(waits, window_s) * _growth(waits, window_s) ** (
        min(failures, waits) - waits
    )
    return wait * (0.9 + 0.2 * jitter)


def _last_wait_s(waits: int, window_s: float, growth: float | None = None) -> float:
    """Return the last of ``waits`` waits that fill a window and grow by a factor."""
    growth = growth or _growth(waits, window_s)
    if growth == 1.0:
        return window_s / waits
    # The geometric series, written with the last wait so that no power can overflow.
    return window_s * (growth - 1) / (growth - growth ** (1 - waits))


@lru_cache(maxsize=256)
def _growth(waits: int, window_s: float) -> float:
    """Return the largest factor with which the first wait is still ``FIRST_WAIT_S``."""
    if window_s / waits <= FIRST_WAIT_S:
        return 1.0
    low, high = 1.0, GROWTH
    if _last_wait_s(waits, window_s, high) * high ** (1 - waits) >= FIRST_WAIT_S:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        is_enough = _last_wait_s(waits, window_s, middle) * middle ** (1 - waits) >= FIRST_WAIT_S
        low, high = (middle, high) if is_enough else (low, middle)
    return low


def unknown_delay_s(failures: int, jitter: float) -> float:
    """Return the seconds to wait after ``failures`` in a row of unknown blame."""
    wait: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * GROWTH ** min(failures - 1, 8))
    return wait * (0.9 + 0.2 * jitter)


def probe_delay_s(failures: int, first_s: float, most_s: float, jitter: float) -> float:
    """Return the seconds between probes of a destination that is down: doubling, full jitter.

    The jitter takes at most half off, so that probes cannot bunch up.
    """
    ceiling: float = min(most_s, first_s * 2 ** min(failures - 1, 30))
    return ceiling * (0.5 + 0.5 * jitter)
