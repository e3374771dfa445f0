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
import binascii
import hashlib
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from amplitude_intercom.engine.console.problems import FieldError, Problem, ProblemType

T = TypeVar("T")

MOST_ROWS: Final = 200
USUAL_ROWS: Final = 50
_DIGEST_BYTES: Final = 9

Cursor = Annotated[str, msgspec.Meta(max_length=8_192, description="`next` of the page before")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The page of a list: up to ``limit`` rows behind those of the page before."""

    cursor: Cursor = ""
    limit: Limit = USUAL_ROWS

    def names(self, path: str) -> str:
        """Return the name of the list at a path, with the conditions of this query."""
        whole = msgspec.structs.replace(self, cursor="", limit=USUAL_ROWS)
        return f"{path} {msgspec.json.encode(whole).decode()}"


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Rows of a list. ``next``: the cursor of the next page; None: there is none."""

    items: list[T]
    next: str | None = None


def cursor_of(names: str, position: str) -> str:
    """Return the cursor behind a position of a list."""
    text = position.encode(errors="surrogatepass")
    return base64.urlsafe_b64encode(_digest(names, text) + text).decode().rstrip("=")


def position_of(names: str, cursor: str) -> str:
    """Return the position that a cursor of this list has; empty: the beginning.

    Raises:
        Problem: it is no cursor of this list.
    """
    if not cursor:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        content = base64.b64decode(padded, altchars=b"-_", validate=True)
        digest, text = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if digest == _digest(names, text):
            return text.decode(errors="surrogatepass")
    except (ValueError, binascii.Error):
        pass
    error = FieldError("/cursor", "it is not a cursor of this list with these conditions")
    raise Problem(ProblemType.REFUSED_VALUE, errors=[error])


def _digest(names: str, text: bytes) -> bytes:
    whole = names.encode(errors="surrogatepass") + b"\0" + text
    return hashlib.sha256(whole).digest()[:_DIGEST_BYTES]
