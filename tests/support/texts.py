"""Any text, and whether it may be printed."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(), max_size=300) | st.text("[]/\\\x1b\x07\n\rab ", max_size=50)


def is_text(line: str) -> bool:
    return line.isprintable() and not any(unicodedata.category(c) == "Cs" for c in line)
