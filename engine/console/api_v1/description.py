"""The OpenAPI description of the API, made of the operations that its routes are made of. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.operations import PART, Nothing, Operation
from amplitude_intercom.engine.console.problems import CONTENT_TYPE, STATUSES, ProblemType
from amplitude_intercom.engine.spool.letters import MOST

_Schema = dict[str, Any]
_TEMPLATE: Final = "#/components/schemas/{name}"
_USUAL: Final = (
    ProblemType.BAD_REQUEST,
    ProblemType.UNAUTHORIZED,
    ProblemType.OTHER_ORIGIN,
    ProblemType.REFUSED_VALUE,
    ProblemType.TOO_MANY_REQUESTS,
    ProblemType.UNAVAILABLE,
)
_OF_BODIES: Final = (
    ProblemType.TOO_SLOW,
    ProblemType.TOO_LARGE,
    ProblemType.WRONG_MEDIA_TYPE,
)
_IDS: Final = ("job", "letter")
"""Parts of paths that are numbers."""

_PROBLEM: Final[_Schema] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "remedy", "instance", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "remedy": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def describe(operations: Sequence[Operation], version: str) -> _Schema:
    """Return the description as plain JSON values."""
    types = dict.fromkeys(
        kind for one in operations for kind in (one.takes, one.returns) if kind is not None
    )
    found, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    schemas = dict(zip(types, found, strict=True))
    paths: dict[str, _Schema] = {}
    for one in operations:
        whole = components.get(one.takes.__name__, {})
        described = _operation(one, schemas, whole)
        paths.setdefault(f"{API_ROOT}{one.path}", {})[one.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "amplitude-intercom: console", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(one: Operation, schemas: dict[Any, _Schema], whole: _Schema) -> _Schema:
    described: _Schema = {
        "summary": one.summary,
        "parameters": list(_parameters(one, whole)),
        "responses": dict(_responses(one, schemas)),
    }
    if one.method != "GET" and one.takes is not Nothing:
        content = {"application/json": {"schema": schemas[one.takes]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(one: Operation, whole: _Schema) -> Iterator[_Schema]:
    for name in PART.findall(one.path):
        kind: _Schema = {"type": "string", "minLength": 1}
        if name in _IDS:
            kind = {"type": "integer", "minimum": 0, "maximum": MOST}
        yield {"name": name, "in": "path", "required": True, "schema": kind}
    if one.method == "GET":
        for name, schema in whole.get("properties", {}).items():
            yield {"name": name, "in": "query", "schema": schema}
    if one.needs_match:
        schema = {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}
        yield {"name": "If-Match", "in": "header", "required": True, "schema": schema}
    if one.method == "GET" and one.has_etag:
        yield {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}}
    if one.takes_key:
        schema = {"type": "string", "minLength": 1, "maxLength": 255}
        yield {"name": "Idempotency-Key", "in": "header", "schema": schema}


def _responses(one: Operation, schemas: dict[Any, _Schema]) -> Iterator[tuple[str, _Schema]]:
    headers = {"ETag": one.has_etag, "Location": one.has_location}
    described: _Schema = {
        "description": one.summary,
        "headers": {n: {"schema": {"type": "string"}} for n, has in headers.items() if has},
    }
    if one.returns is not None:
        described["content"] = {"application/json": {"schema": schemas[one.returns]}}
    yield str(one.status), described
    if one.method == "GET" and one.has_etag:
        yield "304", {"description": "It is as `If-None-Match` names it."}
    kinds = [*_USUAL, *one.refusals, *(() if one.method == "GET" else _OF_BODIES)]
    for kind in kinds:
        schema = {"$ref": _TEMPLATE.format(name="Problem")}
        content: _Schema = {CONTENT_TYPE: {"schema": schema}}
        if kind is ProblemType.BAD_REQUEST:  # a request line that HTTP itself cannot read
            content["text/plain"] = {"schema": {"type": "string"}}
        yield str(STATUSES[kind]), {"description": kind.means, "content": content}
