"""Output for people. Text from outside is escaped: a terminal obeys nothing in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

from amplitude_intercom.engine.wording import shown

WIDE = 10_000
"""Columns of a pipe: what reads it wants a row in one line."""

_UNSEEN = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""What JSON leaves as it is, and a terminal obeys or does not show."""

_NOT_ASCII = re.compile(r"[^\x00-\x7e]")


def json_shown(text: str, encoding: str | None = "utf-8") -> str:
    """Return JSON that says the same, without characters that a terminal obeys or cannot show."""
    can_show_all = "utf" in (encoding or "").lower()
    return (_UNSEEN if can_show_all else _NOT_ASCII).sub(_json_escaped, text)


def _json_escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def say(text: str, *, stderr: bool = False, most: int = 2_000) -> None:
    """Print one line."""
    print(shown(text, most), file=sys.stderr if stderr else sys.stdout)


def print_table(
    rows: Iterable[Sequence[object]],
    head: Sequence[str] = (),
    *,
    stderr: bool = False,
    right: Sequence[int] = (),
) -> None:
    """Print rows in columns; those in ``right`` are aligned to the right."""
    from rich.console import Console  # a quarter of a start, for those who print no table
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=bool(head), header_style="")
    cells = [[shown(cell) for cell in row] for row in rows]
    for index in range(max(map(len, [head, *cells]))):
        name = head[index] if head else ""
        table.add_column(Text(name), justify="right" if index in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDE, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join(lines), file=sys.stderr if stderr else sys.stdout)


def count(number: int, what: str) -> str:
    """Return a number of things: ``1 user``, ``1,000 users``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listed(counts: Iterable[tuple[str, int]], most: int = 10) -> str:
    """Return counts in words, the first ``most`` of them: ``3 refused, 1 internal``."""
    pairs = list(counts)
    words = [f"{number:,} {shown(name, 60)}" for name, number in pairs[:most]]
    return ", ".join(words) + (f" and {len(pairs) - most:,} more" if len(pairs) > most else "")


def size(number_of_bytes: int) -> str:
    """Return a number of bytes in words: ``34 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number_of_bytes >= factor:
            return f"{number_of_bytes / factor:.3g} {unit}"
    return f"{number_of_bytes} bytes"
