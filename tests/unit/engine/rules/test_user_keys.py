"""The user key of an event, and the identity that it gives a contact."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.rules.verdicts import Reject
from support.plans import record, rules


@pytest.mark.parametrize(
    ("identifier", "user"),
    [
        ("external_id", "x" * 256),
        ("external_id", "a\0b"),
        ("external_id", "a\nb"),
        ("external_id", " "),
        ("email", "no-at-sign"),
        ("email", "@example.com"),
        ("email", "a b@example.com"),
    ],
)
def test_an_identity_that_intercom_cannot_take_is_rejected(identifier: str, user: str) -> None:
    planned = rules(mapping={"identifier": identifier}).plan(record({}, user))
    assert isinstance(planned, Reject)
    assert planned.reason == "invalid_identity"
    assert planned.message.startswith(f"{identifier}: ")
