"""Operations of the API as values: routes and description are both made of them.

Rules
=====
1. An operation takes one struct: of the query for ``GET``, else of the body. Unknown fields are
   refused.
2. An operation returns an ``ApiAnswer``; its value is of the declared type. A refusal is a
   ``Problem``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.problems import ProblemType

PART: Final = re.compile(r"{(\w+)}")
"""A part of a path that a request gives."""

USUAL_BODY_BYTES: Final = 1_000_000
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body or query of an operation that takes none."""


class ApiAnswer(NamedTuple):
    """A successful answer. ``value`` becomes the JSON; the operation declares the status."""

    value: Any
    headers: Mapping[str, str] = {}


G = TypeVar("G")
Handler = Callable[[web.Request, Any], Awaitable[ApiAnswer]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path, below ``API_ROOT``."""

    method: Method
    path: str
    handler: Handler
    takes: type
    """The struct of its query or body."""

    returns: Any
    """The type of the answer's value; None with the status 204: there is none."""

    status: int = 200
    refusals: tuple[ProblemType, ...] = ()
    """Those beside the usual ones."""

    needs_match: bool = False
    """Whether ``If-Match`` has to name what is changed."""

    takes_key: bool = False
    """Whether ``Idempotency-Key`` is taken."""

    has_etag: bool = False
    has_location: bool = False
    most_bytes: int = USUAL_BODY_BYTES
    """Of its body."""

    most_elements: int = 0
    """The commas that its body may have; 0: only its bytes are bounded."""

    at_once: int = 0
    """The requests that are read and answered at once, where others wait; 0: all."""

    is_secret: bool = False
    """Whether no refusal quotes its body."""

    @property
    def summary(self) -> str:
        """The handler's docstring in one line."""
        return " ".join((self.handler.__doc__ or "").split())


def operation(
    method: Method,
    path: str,
    handler: Callable[[web.Request, G], Awaitable[ApiAnswer]],
    takes: type[G],
    returns: Any,
    **more: Any,
) -> Operation:
    """Return an operation; the type checker holds the handler to the struct that it takes."""
    return Operation(
        method=method, path=path, handler=handler, takes=takes, returns=returns, **more
    )
