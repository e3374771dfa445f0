"""Numbers as text, and the range in which whole numbers are exact."""

from __future__ import annotations

import re
from typing import Final

MAX_WHOLE: Final = 2**53
"""Whole numbers from here on lose digits in programs that compute in floating point."""

DECIMAL: Final = re.compile(
    r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE
)
"""A decimal number. ``float`` alone takes more: ``1_9.9_9``, ``nan``, digits of other scripts."""


def digits(value: int) -> str | None:
    """Return a whole number's digits; None beyond ``sys.set_int_max_str_digits``."""
    try:
        return str(value)
    except ValueError:
        return None
