"""Values in words, for people: bounded, and printable. Pure."""

from __future__ import annotations

from typing import Final

from amplitude_intercom.engine.log_lines import printable

MOST_CHARACTERS: Final = 200


def shown(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return a value as one line of printable text of at most ``most`` characters.

    Control characters, line ends, halves of surrogate pairs and whatever else cannot be seen
    become escapes such as ``\\x1b``: a terminal would obey them, or could not be written to.
    """
    text = printable(str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def duration(seconds: float) -> str:
    """Return a time span in words, in its largest unit that makes two or more: ``3 min``."""
    if seconds < 1:
        return f"{seconds:.3g} s"
    for unit, size_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
