"""The sandbox's answers have the shapes of Intercom's API description 2.16.

The description contradicts itself and Intercom in places. Formats are not checked: it has
``date-time`` on integers, and ``uuid`` on the request id of an error, which is none. The rest is
mended before validating, in ``mended``, ``without_nullable`` and ``schema_of``.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import reference

NOW_S = 1_700_000_000

Schema = dict[str, Any]


@functools.cache
def description() -> Schema:
    found: Schema = without_nullable(mended(reference.api_description()))
    return found


def mended(loaded: Schema) -> Schema:
    schemas = loaded["components"]["schemas"]
    # Metadata is typed string → string; numbers, links and money are described in the prose.
    schemas["data_event"]["properties"]["metadata"]["additionalProperties"] = True
    # Search and list show null for no e-mail (recordings).
    schemas["contact"]["properties"]["email"]["nullable"] = True
    # The answer to GET /events is described as a summary only.
    events = loaded["paths"]["/events"]["get"]["responses"]["200"]["content"]["application/json"]
    refs = ("data_event_summary", "data_event_list")
    events["schema"] = {"anyOf": [{"$ref": f"#/components/schemas/{ref}"} for ref in refs]}
    return loaded


def without_nullable(node: Any) -> Any:
    """Return JSON schema for OpenAPI 3.0's; ``nullable`` stands without ``type`` in places."""
    if isinstance(node, list):
        return [without_nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {key: without_nullable(each) for key, each in node.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def schema_of(method: str, path: str, status: int) -> Schema:
    """Return what is described; where an error is missing, the general one stands in."""
    answers = description()["paths"][path][method.lower()]["responses"]
    if str(status) in answers:
        content = answers[str(status)].get("content")
        schema: Schema = content["application/json"]["schema"] if content else {}
        return schema
    assert status >= 400, f"{method} {path} has no answer {status}"
    return {"$ref": "#/components/schemas/error"}


def complaints(schema: Schema, body: object) -> list[str]:
    validator = Draft202012Validator({**schema, "components": description()["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]


def sandbox() -> Sandbox:
    return Sandbox(now=lambda: NOW_S, attributes={"plan": "string"})


def send(sandbox: Sandbox, method: str, path: str, body: object = None) -> Answer:
    encoded = None if body is None else json.dumps(body).encode()
    return sandbox.handle(Request(method, path, encoded))


def assert_described(answer: Answer, method: str, path: str, status: int = 200) -> None:
    assert answer.status == status, answer.body
    found = complaints(schema_of(method, path, status), json.loads(answer.body))
    assert not found, "\n".join(found)


def test_the_validator_does_find_invalid_bodies() -> None:
    schema = schema_of("GET", "/contacts/{contact_id}", 200)
    assert complaints(schema, {"type": "contact", "id": 5})
    assert complaints(schema, {"type": "contact", "name": 5})
    assert not complaints(schema, {"type": "contact", "id": "5", "name": None})


def test_a_created_contact_is_as_described() -> None:
    full = {
        "role": "user",
        "external_id": "u-1",
        "email": "mira@example.com",
        "phone": "+16505550123",
        "name": "Mira",
        "avatar": "https://example.com/mira.png",
        "owner_id": 1,
        "signed_up_at": NOW_S,
        "last_seen_at": NOW_S,
        "unsubscribed_from_emails": True,
        "custom_attributes": {"plan": "pro"},
    }
    for body in (full, {"external_id": "u-2"}, {"role": "lead"}):
        assert_described(send(sandbox(), "POST", "/contacts", body), "POST", "/contacts")


def test_a_contact_is_read_and_updated_as_described() -> None:
    box = sandbox()
    contact_id = box.add_contact("u-1", avatar="https://example.com/a.png")
    path, described = f"/contacts/{contact_id}", "/contacts/{contact_id}"
    assert_described(send(box, "GET", path), "GET", described)
    assert_described(send(box, "PUT", path, {"name": None}), "PUT", described)
    found = send(box, "GET", "/contacts/find_by_external_id/u-1")
    assert_described(found, "GET", "/contacts/find_by_external_id/{external_id}")


def test_lists_and_searches_are_as_described() -> None:
    box = sandbox()
    for n in range(3):
        box.add_contact(f"u-{n}")
    query = {"field": "role", "operator": "=", "value": "user"}
    for per_page in (2, 50):
        asked = {"query": query, "pagination": {"per_page": per_page}}
        answer = send(box, "POST", "/contacts/search", asked)
        assert_described(answer, "POST", "/contacts/search")
        listed = send(box, "GET", f"/contacts?per_page={per_page}")
        assert_described(listed, "GET", "/contacts")


@pytest.mark.parametrize("action", ["archive", "unarchive"])
def test_archiving_is_answered_as_described(action: str) -> None:
    # The description calls the key ``type``, the wire ``object``; neither is required.
    box = sandbox()
    answer = send(box, "POST", f"/contacts/{box.add_contact('u-1')}/{action}", {})
    assert_described(answer, "POST", f"/contacts/{{contact_id}}/{action}")


def test_deleting_is_answered_as_described() -> None:
    box = sandbox()
    answer = send(box, "DELETE", f"/contacts/{box.add_contact('u-1')}")
    assert_described(answer, "DELETE", "/contacts/{contact_id}")


def test_a_merge_is_answered_as_described() -> None:
    box = sandbox()
    lead, user = box.add_contact(role="lead", email="a@b.c"), box.add_contact("u-1", "a@b.c")
    answer = send(box, "POST", "/contacts/merge", {"from": lead, "into": user})
    assert_described(answer, "POST", "/contacts/merge")
    described = "/contacts/{contact_id}"
    assert_described(send(box, "GET", f"/contacts/{lead}"), "GET", described, status=410)


def test_events_are_listed_and_summarized_as_described() -> None:
    box = sandbox()
    box.add_contact("u-1", "mira@example.com")
    metadata = {"plan": "pro", "price": {"amount": 1999, "currency": "eur"}, "seats": 3}
    event = {"event_name": "ordered", "created_at": NOW_S, "user_id": "u-1", "metadata": metadata}
    assert send(box, "POST", "/events", event).status == 202
    for query in ("user_id=u-1", "email=mira@example.com", "user_id=u-1&summary=true"):
        assert_described(send(box, "GET", f"/events?type=user&{query}"), "GET", "/events")


def test_data_attributes_are_as_described() -> None:
    box = sandbox()
    path = "/data_attributes"
    assert_described(send(box, "GET", f"{path}?model=contact"), "GET", path)
    made = {"name": "seats", "model": "contact", "data_type": "datetime"}
    assert_described(send(box, "POST", path, made), "POST", path)
    refused = send(box, "POST", path, made)
    assert_described(refused, "POST", path, status=400)


def test_the_token_s_owner_is_as_described() -> None:
    assert_described(send(sandbox(), "GET", "/me"), "GET", "/me")


def test_errors_have_the_described_envelope() -> None:
    box = sandbox()
    box.add_contact("u-1")
    path = "/contacts"
    assert_described(send(box, "POST", path, {"external_id": "u-1"}), "POST", path, status=409)
    missing = send(box, "GET", "/contacts/nobody")
    assert_described(missing, "GET", "/contacts/{contact_id}", status=404)
    nobody = {"event_name": "x", "created_at": NOW_S, "user_id": "nobody"}
    assert_described(send(box, "POST", "/events", nobody), "POST", "/events", status=404)
    box.revoke_token()
    assert_described(send(box, "GET", "/contacts"), "GET", "/contacts", status=401)
