"""How long to wait before trying again: pure functions, the jitter is the caller's number.

Record-level retries spread a number of attempts over a window, each wait longer than the last, as
Amplitude's own streams do (10 attempts over 4 hours; the spacing is not documented, so it is ours).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

FIRST_WAIT_S: Final = 6.0
LONGEST_WAIT_S: Final = 60.0
"""How long a user waits after its first failure, and at most, while it is not known whose it is."""

GROWTH: Final = 2.5
"""Each wait is at most this much longer: 10 attempts over 4 h start 6 s apart and end 2.4 h apart.
It is less where the first wait would be under ``FIRST_WAIT_S``."""


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
    """Return the last of so many waits that fill a window, each ``growth`` times the one before."""
    growth = growth or _growth(waits, window_s)
    if growth == 1.0:
        return window_s / waits
    # The geometric series, written with the last wait so that no power can overflow.
    return window_s * (growth - 1) / (growth - growth ** (1 - waits))


@lru_cache(maxsize=256)
def _growth(waits: int, window_s: float) -> float:
    """Return the growth with which the first wait is long enough, as far as the window allows."""
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
    """Return the seconds to wait after so many failures in a row of which it is not known whose
    fault they were; ``jitter`` as above."""
    wait: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * GROWTH ** min(failures - 1, 8))
    return wait * (0.9 + 0.2 * jitter)


def probe_delay_s(failures: int, first_s: float, most_s: float, jitter: float) -> float:
    """Return the seconds between probes of a destination that is down: doubling, full jitter.

    Never under half of what the doubling says, so that probes cannot bunch up.
    """
    ceiling: float = min(most_s, first_s * 2 ** min(failures - 1, 30))
    return ceiling * (0.5 + 0.5 * jitter)
