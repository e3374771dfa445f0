"""Which event names have a slot: what a workspace refuses, and what is on disk, decide."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.delivery.event_names import (
    DAY_MS,
    FORGOTTEN_AFTER_DAYS,
    RECHECK_S,
    WARN_AT,
    EventNames,
)
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES
from support.virtual import in_virtual_time

ALL = [f"name {n}" for n in range(MAX_EVENT_TYPES)]


class Kept:
    """The names that are on disk."""

    def __init__(self) -> None:
        self.days: dict[str, int] = {}
        self.day = 0
        self.fails = False

    def names(self) -> EventNames:
        return EventNames(self.event_names, self.keep_event_names, lambda: self.day * DAY_MS)

    async def event_names(self) -> dict[str, int]:
        await anyio.sleep(0.1)
        return dict(self.days)

    async def keep_event_names(self, days: Mapping[str, int]) -> None:
        if self.fails:
            raise OSError("the disk is full")
        await anyio.sleep(0.1)
        self.days = dict(days)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def names(kept: Kept) -> EventNames:
    return kept.names()


@in_virtual_time
async def test_there_are_so_many_slots_and_names_are_compared_without_case(
    kept: Kept, names: EventNames
) -> None:
    with capture_logs() as logs:
        assert await names.admit(ALL) == set()
    assert [log["names"] for log in logs] == [MAX_EVENT_TYPES]
    assert await names.admit(["NAME 5", "one more", "another"]) == {"one more", "another"}
    assert (names.count, len(kept.days)) == (MAX_EVENT_TYPES, MAX_EVENT_TYPES)


@in_virtual_time
async def test_one_warns_before_there_are_none_left(kept: Kept, names: EventNames) -> None:
    with capture_logs() as logs:
        for name in ALL[: WARN_AT + 2]:
            await names.admit([name])
    assert [log["names"] for log in logs] == [WARN_AT]


@in_virtual_time
async def test_a_name_that_was_not_sent_for_long_leaves_its_slot(
    kept: Kept, names: EventNames
) -> None:
    await names.admit(ALL)
    kept.day = FORGOTTEN_AFTER_DAYS - 1
    assert await names.admit([ALL[0], "new"]) == {"new"}
    kept.day = FORGOTTEN_AFTER_DAYS
    assert await names.admit(["new"]) == set()
    assert set(kept.days) == {ALL[0], "new"}


@in_virtual_time
async def test_a_name_that_intercom_refused_has_no_slot_for_an_hour(
    kept: Kept, names: EventNames
) -> None:
    """Its events asked for one with each turn, and had it."""
    await names.admit(["Paid"])
    names.refuse("paid")
    assert await names.admit(["Paid", "seen"]) == set()
    assert (names.count, names.is_refused("PAID")) == (1, True)
    await anyio.sleep(RECHECK_S + 1)
    await names.admit(["Paid"])
    assert (names.count, names.is_refused("Paid")) == (2, False)


@in_virtual_time
async def test_an_unsaved_name_does_not_count_as_kept(kept: Kept, names: EventNames) -> None:
    kept.fails = True
    with pytest.raises(OSError, match="full"):
        await names.admit(["paid"])
    assert names.count == 0
    kept.fails = False
    await names.admit(["paid"])
    assert set(kept.days) == {"paid"}


@in_virtual_time
async def test_names_of_two_syncs_at_once_are_all_kept(kept: Kept, names: EventNames) -> None:
    async with anyio.create_task_group() as tasks:
        for name in ("paid", "left", "came"):
            tasks.start_soon(names.admit, [name])
    assert set(kept.days) == {"paid", "left", "came"}
    assert names.count == 3


@in_virtual_time
async def test_a_forgotten_name_leaves_its_slot_to_another_on_disk_too(kept: Kept) -> None:
    names = kept.names()
    assert await names.admit(ALL) == set()
    assert await names.admit(["Another"]) == {"Another"}
    assert await names.forget("NAME 7")
    assert "name 7" not in kept.days
    assert not await names.forget("name 7")
    assert await names.admit(["Another"]) == set()
    assert await names.admit(["name 7"]) == {"name 7"}
    assert await kept.names().forget("another"), "what is on disk is known before the first event"


@in_virtual_time
async def test_a_name_that_intercom_refused_is_tried_again_once_it_is_forgotten(
    kept: Kept,
) -> None:
    names = kept.names()
    await names.admit(["Paid", "Left"])
    names.refuse("Paid")
    assert await names.forget("paid")
    assert not names.is_refused("Paid")
    assert await names.admit(["Paid"]) == set()
    assert set(kept.days) == {"paid", "left"}


@in_virtual_time
async def test_a_name_that_cannot_be_forgotten_on_disk_is_not_forgotten(kept: Kept) -> None:
    names = kept.names()
    await names.admit(["Paid"])
    kept.fails = True
    with pytest.raises(OSError, match="full"):
        await names.forget("Paid")
    assert names.count == 1
