"""Pages of parked users: bounded in size."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.console.api_v1.parked import MOST_CHARACTERS, fitting
from amplitude_intercom.engine.spool.users import ParkedUser


def parked(*lengths: int) -> list[ParkedUser]:
    return [ParkedUser("x" * length, None, 1, "internal", 1, "", 0) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ((), 0),
        ((255,) * 200, 200),
        ((MOST_CHARACTERS, 1), 1),
        ((MOST_CHARACTERS + 1, 1), 1),
        ((1, MOST_CHARACTERS, 1), 1),
        ((1_024,) * 200, 64),
    ],
)
def test_a_page_ends_before_its_keys_are_too_long(lengths: tuple[int, ...], shown: int) -> None:
    users = parked(*lengths)
    assert fitting(users) == users[:shown]
