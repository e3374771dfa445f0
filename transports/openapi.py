"""The OpenAPI description of the HTTP source, as it is served.

A schema fuzzer checks the source against it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from amplitude_intercom.transports.amplitude import (
    GROUP_IDENTIFY,
    MAX_AMPLITUDE_TEXT,
    MAX_EVENTS,
    MIN_ID_LENGTH,
    RESERVED_IDS,
)
from amplitude_intercom.transports.own_version import own_version

_Schema = dict[str, Any]

SUCCESS: Final = "success"
"""The old form's answer: amplitude-js 5.8 to 8.21.3 and Amplitude-Android compare with it."""

ANSWERS: Final = {
    "200": "the events are on disk",
    "400": "refused whole; every bad event's index is listed under its field",
    "408": "the body did not come in time",
    "413": "too many bytes or events: send fewer at once",
    "414": "the request line is too long",
    "415": "an encoding other than gzip and deflate",
    "429": "over a limit that was set for the API key; `throttled_events` should wait",
    "503": "nothing is taken now, send it again later",
}


@cache
def describe() -> _Schema:
    """Return the description as plain JSON values; not to be changed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "amplitude-intercom: HTTP source",
            "version": own_version(),
            "description": "Amplitude's ingestion endpoints, as its SDKs and its webhook use them.",
        },
        "paths": {
            "/2/httpapi": {"post": _upload("Events of an SDK, up to 1 MB.")},
            "/batch": {"post": _upload("Events of an SDK, up to 20 MB.")},
            "/httpapi": _form_path("Events in the endpoint before HTTP V2.", "event", "Event"),
            "/identify": _form_path("User properties.", "identification", "Identification"),
            "/groupidentify": _form_path(
                "Group properties: taken and counted, not forwarded.",
                "identification",
                "GroupIdentification",
            ),
            "/": _root_path(),
            "/webhook": {"post": _webhook()},
            "/healthz": {
                "get": {
                    "summary": "Whether the port is served, for load balancers.",
                    "responses": {"200": _response("it is", _ref("Health"))},
                }
            },
            "/openapi.json": {
                "get": {
                    "summary": "This description.",
                    "responses": {
                        "200": _response("this description", {"type": "object"}),
                    },
                }
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


def _upload(summary: str) -> _Schema:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("Upload")}},
        },
        "responses": _responses(),
    }


def _webhook() -> _Schema:
    key = {**_KEY, "description": "Or as a bearer token, or in the header X-Api-Key."}
    one_or_more = {"anyOf": [{"type": "object"}, {"type": "array", "minItems": 1}]}
    return {
        "summary": "Amplitude's webhook stream: an event, an Identify, or an array of them.",
        "parameters": [{"name": "api_key", "in": "query", "required": True, "schema": key}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": one_or_more}},
        },
        "responses": _responses(),
    }


def _form_path(summary: str, field: str, item: str, key: str = "api_key") -> _Schema:
    """Describe an endpoint that takes a form in its body, or the same fields in its query."""
    text = {
        "type": "string",
        "format": f"json-{item}",
        "contentMediaType": "application/json",
        "contentSchema": {
            "anyOf": [_ref(item), {"type": "array", "items": _ref(item), "minItems": 1}]
        },
    }
    fields = {key: _KEY, field: text}
    form = {"type": "object", "required": [key, field], "properties": fields}
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {"application/x-www-form-urlencoded": {"schema": form}},
            },
            "responses": _responses(),
        },
        "get": {
            "summary": summary,
            "parameters": [
                {"name": name, "in": "query", "required": True, "schema": schema}
                for name, schema in fields.items()
            ],
            "responses": _responses(),
        },
    }


def _root_path() -> _Schema:
    """Describe the old SDKs' form, which is answered in text, and JSON as for ``/2/httpapi``."""
    path = _form_path(
        "Events of the old JavaScript SDK, with their checksum; or JSON of an SDK of today.",
        *("e", "Event", "client"),
    )
    content = path["post"]["requestBody"]["content"]
    content["application/json"] = {"schema": _ref("Upload")}
    for operation in path.values():
        success = operation["responses"]["200"]["content"]
        success["text/plain"] = {"schema": {"const": SUCCESS}}
    return path


def _responses() -> _Schema:
    return {
        status: _response(text, _ref("Success" if status == "200" else "Refusal"))
        for status, text in ANSWERS.items()
    }


def _response(text: str, schema: _Schema) -> _Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _any_case(text: str) -> str:
    """Return a regex for a text, its letters in either case: JSON Schema has no flag for that."""
    return "".join(
        f"[{c.lower()}{c.upper()}]" if c.isalpha() else c if c.isalnum() else f"\\{c}" for c in text
    )


_RESERVED: Final = "|".join(_any_case(text) for text in sorted(RESERVED_IDS) if text)
_KEY: Final = {"type": "string", "minLength": 1, "description": "The project's API key."}
_OBJECT: Final = {"type": ["object", "null"]}
_TEXT: Final = {"type": ["string", "null"]}


def _id(min_length: int) -> _Schema:
    return {
        "type": ["string", "integer", "null"],
        "description": "A whole number is its digits.",
        "minimum": 10 ** (min_length - 1),
        "minLength": min_length,
        "maxLength": MAX_AMPLITUDE_TEXT,
        "not": {"type": "string", "pattern": f"^({_RESERVED})$"},
    }


def _has(field: str, min_length: int) -> _Schema:
    there = {"type": ["string", "integer"], "minLength": min_length}
    return {"required": [field], "properties": {field: there}}


def _event(min_length: int, *, named: bool) -> _Schema:
    """Describe an event, or an identification, which has no type of its own."""
    properties: _Schema = {
        "user_id": _id(min_length),
        "device_id": _id(min_length),
        "insert_id": {"type": ["string", "integer", "null"]},
        "time": {"type": ["integer", "null"], "minimum": 0, "description": "Unix milliseconds."},
        "event_properties": _OBJECT,
        "user_properties": {
            **_OBJECT,
            "description": "An object: plain keys, operations, or both.",
        },
        "groups": _OBJECT,
        "group_properties": _OBJECT,
    }
    ids = [_has("user_id", min_length), _has("device_id", min_length)]
    if not named:
        return {"type": "object", "properties": properties, "anyOf": ids}
    group = {"properties": {"event_type": {"const": GROUP_IDENTIFY}}}
    properties["event_type"] = {"type": "string", "minLength": 1, "maxLength": MAX_AMPLITUDE_TEXT}
    return {
        "type": "object",
        "required": ["event_type"],
        "properties": properties,
        "anyOf": [*ids, group],
    }


_INDEXES: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_INDEXES_BY_FIELD: Final = {"type": "object", "additionalProperties": _INDEXES}
_COUNTS: Final = {"type": "object", "additionalProperties": {"type": "integer"}}

_SCHEMAS: Final = {
    "Upload": {
        "type": "object",
        "required": ["api_key", "events"],
        "properties": {
            "api_key": _KEY,
            "events": {
                "type": "array",
                "minItems": 1,
                "description": f"Up to {MAX_EVENTS}.",
                "items": _ref("UploadedEvent"),
            },
            "client_upload_time": {
                "description": "The client's time of sending: Unix milliseconds, or ISO text.",
            },
            "options": {
                "description": "An object: `min_id_length` changes the shortest length of ids.",
            },
        },
    },
    "UploadedEvent": _event(MIN_ID_LENGTH, named=True),
    "Event": _event(1, named=True),
    "Identification": _event(1, named=False),
    "GroupIdentification": {
        "type": "object",
        "properties": {"group_type": _TEXT, "group_value": {}, "group_properties": _OBJECT},
    },
    "Health": {
        "type": "object",
        "required": ["code", "status"],
        "properties": {"code": {"const": 200}, "status": {"const": "ok"}},
    },
    "Success": {
        "type": "object",
        "required": ["code", "events_ingested", "payload_size_bytes", "server_upload_time"],
        "properties": {
            "code": {"const": 200},
            "events_ingested": {"type": "integer", "minimum": 1},
            "payload_size_bytes": {"type": "integer", "minimum": 0},
            "server_upload_time": {"type": "integer", "description": "Unix milliseconds."},
        },
        "additionalProperties": False,
    },
    "Refusal": {
        "type": "object",
        "required": ["code", "error"],
        "properties": {
            "code": {"type": "integer", "minimum": 400, "maximum": 599},
            "error": {"type": "string"},
            "missing_field": {"type": "string"},
            "events_with_invalid_fields": _INDEXES_BY_FIELD,
            "events_with_missing_fields": _INDEXES_BY_FIELD,
            "events_with_invalid_id_lengths": _INDEXES_BY_FIELD,
            "eps_threshold": {"type": "integer", "minimum": 1},
            "throttled_devices": _COUNTS,
            "throttled_users": _COUNTS,
            "throttled_events": _INDEXES,
        },
        "additionalProperties": False,
    },
}
