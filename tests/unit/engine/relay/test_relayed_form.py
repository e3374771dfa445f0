"""In whose line each event of a request stands."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.relay.relayed_form import relayed_of
from support import relaying


def lines_of(*events: dict[str, Any], key: str = "k") -> list[int]:
    made = [relaying.event("d", n, **more) for n, more in enumerate(events)]
    relayed = relayed_of(relaying.request(made, key=key), drops_oldest=True)
    assert relayed is not None
    return relayed.devices


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"user_id": None}, {"user_id": "mira"}, True),  # of one device, before and after a login
        ({"device_id": "d1"}, {"device_id": "d2"}, False),
        ({"device_id": None, "user_id": "a"}, {"device_id": None, "user_id": "a"}, True),
        ({"device_id": None, "user_id": "a"}, {"device_id": None, "user_id": "b"}, False),
    ],
)
def test_events_of_one_device_stand_in_one_line(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    found = lines_of(one, other)
    assert (len(found) == 1) is same


def test_each_project_has_lines_of_its_own() -> None:
    assert lines_of({}) != lines_of({}, key="another")
