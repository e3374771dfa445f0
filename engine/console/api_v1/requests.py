"""Bodies and queries of requests as typed structs; a refusal points at the value."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.admin_server import BODY_READ
from amplitude_intercom.engine.console.problems import Problem, ProblemType, refused_value
from amplitude_intercom.engine.spool.letters import MOST

T = TypeVar("T")

BODY_TIMEOUT_S: Final = 10.0
_JSON: Final = "application/json"
_AT: Final = re.compile(r" - at `(key in )?\$?(?P<path>[^`]*)`\Z", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.*)`")
_STEP: Final = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")


def _unquoted() -> Problem:
    return refused_value(
        "", "not as `/api/v1/openapi.json` describes it; what was sent is not shown"
    )


def refuse_larger(request: web.Request, most_bytes: int) -> None:
    """Refuse a body that says to be larger, before it is read."""
    length = request.content_length or 0
    if length > most_bytes:
        raise web.HTTPRequestEntityTooLarge(most_bytes, length)


async def body_of(
    request: web.Request,
    kind: type[T],
    most_bytes: int,
    most_elements: int = 0,
    *,
    is_secret: bool = False,
) -> T:
    """Return the body of a request; an empty one is an empty object.

    ``most_elements``: the commas that it may have; 0: any number. ``is_secret``: whether a refusal
    quotes nothing of it: a secret may stand in the wrong place.

    Raises:
        Problem: it is no such struct, no JSON, or does not come.
    """
    if request.query:
        raise Problem(ProblemType.BAD_REQUEST, "this operation takes no query")
    if request.can_read_body and request.content_type != _JSON:
        raise Problem(ProblemType.WRONG_MEDIA_TYPE, f"send Content-Type: {_JSON}")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.clone(client_max_size=most_bytes).read()
        request[BODY_READ]()
        if most_elements and body.count(b",") > most_elements:  # decoded, each is an object
            raise Problem(ProblemType.TOO_LARGE, f"it has more than {most_elements} elements")
        return msgspec.json.decode(body or b"{}", type=kind)
    except TimeoutError:
        raise Problem(ProblemType.TOO_SLOW) from None
    except (aiohttp.ClientPayloadError, web.RequestPayloadError):
        raise Problem(ProblemType.BAD_REQUEST, "not a body as its headers say") from None
    except msgspec.ValidationError as error:
        raise _unquoted() if is_secret else refused(error) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(ProblemType.BAD_REQUEST, f"not JSON: {error}") from None


def query_of(request: web.Request, kind: type[T]) -> T:
    """Return the query of a request; a list is a parameter that is given several times.

    Raises:
        Problem: it is no such struct.
    """
    kinds: Any = kind
    lists = _lists_of(kinds)
    given: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        if len(values) > 1 and name not in lists:
            raise refused_value(_pointer([name]), "it is given more than once")
        given[name] = values if name in lists else values[0]
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(error) from None


def refused(error: msgspec.ValidationError) -> Problem:
    """Return the refusal of a value of a wrong type, with a pointer to it."""
    said = str(error)
    at = _AT.search(said)
    steps = [m["key"] or m["index"] for m in _STEP.finditer(at["path"])] if at else []
    detail = said[: at.start()] if at else said
    detail = detail.replace("`bytes`", "text in Base64")
    field = _FIELD.match(detail)
    if field is not None:
        steps.append(field["name"])
    return refused_value(_pointer(steps), detail)


def _pointer(steps: list[str]) -> str:
    return "".join(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in steps)


@cache
def _lists_of(kind: Any) -> frozenset[str]:
    """Return the fields of a struct that are lists."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(field.encode_name for field in info.fields if _is_list(field.type))


def _is_list(info: msgspec.inspect.Type) -> bool:
    if isinstance(info, msgspec.inspect.UnionType):
        return any(map(_is_list, info.types))
    return isinstance(info, msgspec.inspect.ListType)


def id_of(request: web.Request, name: str) -> int:
    """Return the number that a part of the path is.

    Raises:
        Problem: it is none: there is no such thing.
    """
    text = request.match_info[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MOST):
        raise Problem(ProblemType.NOT_FOUND, f"the id of a {name} is a number")
    return int(text)
