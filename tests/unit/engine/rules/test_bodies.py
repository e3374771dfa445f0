"""Bodies are small enough, and a new contact is a user."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from amplitude_intercom.engine.envelope import Identity
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body, event_body
from amplitude_intercom.engine.rules.contacts import field_name
from support.plans import ANY, plan, rules


def test_a_gigantic_property_stops_nobody() -> None:
    link = {"url": "https://a.b/" + "👍" * 240, "value": "👍" * 255}
    properties: dict[str, Any] = {"text": "\u0001" * 100_000}
    properties |= {f"{'👍' * 250}{n}": link for n in range(99)}
    planned = plan(
        rules(events={"metadata": list(properties), "metadata_limit": 100}),
        {"event_properties": properties},
    )
    assert planned.event is not None
    assert len(event_body(planned.event)) <= 256_000
    reasons = Counter(adjustment.reason for adjustment in planned.adjustments)
    assert reasons[AdjustmentReason.TEXT_CUT] == 1
    assert reasons[AdjustmentReason.TOO_LARGE] == 100 - len(planned.event["metadata"]) > 0


def test_a_new_contact_is_a_user_with_its_identity() -> None:
    assert json.loads(creation_body(Identity("email", "a@b.c"), {"name": "A"})) == {
        "role": "user",
        "email": "a@b.c",
        "name": "A",
    }


def test_a_contact_s_last_attributes_are_left_out_where_the_request_would_be_too_large() -> None:
    properties = {f"{'👍' * 250}{n}": "👍" * 255 for n in range(200)}
    mapping = rules(users={"properties": list(properties)})
    fields, adjustments = mapping.contacts.contact_fields(properties, ANY)
    assert len(contact_body(fields)) <= 256_000
    assert list(fields) == [field_name(name) for name in properties][: len(fields)]
    reasons = [adjustment.reason for adjustment in adjustments]
    assert reasons == ["too_large"] * (200 - len(fields))
    assert 100 < len(fields) < 200
