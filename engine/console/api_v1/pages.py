"""Pages of lists, and the cursors between them. Pure.

Rules
=====
1. A cursor names its list with the conditions, and the last row of its page. It is opaque: nobody
   but this module reads one.
2. A cursor of another list, or with other conditions, is refused, and so is any other text. It is
   no secret: a forged one only begins a page elsewhere in its list.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from amplitude_intercom.engine.console.problems import refused_value

T = TypeVar("T")

MOST_ROWS: Final = 200
USUAL_ROWS: Final = 50
MOST_NAMED: Final = 1_000
"""Rows that one request names."""
_DIGEST_BYTES: Final = 9

Cursor = Annotated[str, msgspec.Meta(max_length=6_144, description="`next` of the page before")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The page of a list: up to ``limit`` rows behind those of the page before."""

    cursor: Cursor = ""
    limit: Limit = USUAL_ROWS

    def list_name(self, path: str) -> str:
        """Return the name of the list at a path, with the conditions of this query."""
        whole = msgspec.structs.replace(self, cursor="", limit=USUAL_ROWS)
        return f"{path} {msgspec.json.encode(whole).decode()}"


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Rows of a list. ``next``: the cursor of the next page; None: there is none."""

    items: list[T]
    next: str | None = None


def page_by_name(names: Iterable[str], path: str, query: PageQuery) -> tuple[list[str], str | None]:
    """Return the names of a page in their order, and the cursor of the next one."""
    list_name = query.list_name(path)
    after = position_of(list_name, query.cursor, str)
    rest = sorted(name for name in names if name > after)
    some = rest[: query.limit]
    return some, cursor_of(list_name, some[-1]) if len(rest) > len(some) else None


def cursor_of(list_name: str, position: str) -> str:
    """Return the cursor behind a position of a list."""
    text = position.encode(errors="surrogatepass")
    return base64.urlsafe_b64encode(_digest(list_name, text) + text).decode().rstrip("=")


def position_of(list_name: str, cursor: str, read: Callable[[str], T]) -> T:
    """Return the position that a cursor of this list has, as ``read`` reads it.

    ``read`` raises a ``ValueError`` for a text that is none; of the empty one it returns the
    beginning.

    Raises:
        Problem: it is no cursor of this list.
    """
    if not cursor:
        return read("")
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        content = base64.b64decode(padded, altchars=b"-_", validate=True)
        digest, text = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if digest == _digest(list_name, text):
            return read(text.decode(errors="surrogatepass"))
    except ValueError:
        pass
    raise refused_value("/cursor", "it is not a cursor of this list with these conditions")


def number(text: str) -> int:
    """Return the number that a position is; 0: the beginning.

    Raises:
        ValueError: it is none that a list has.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ValueError("not a number of a row")
    return int(text)


def _digest(list_name: str, text: bytes) -> bytes:
    whole = list_name.encode(errors="surrogatepass") + b"\0" + text
    return hashlib.sha256(whole).digest()[:_DIGEST_BYTES]
