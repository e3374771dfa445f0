"""Who writes a contact of a workspace, and of whom it is known that they are not there."""

from __future__ import annotations

import anyio

from amplitude_intercom.engine.delivery.calls import NotNow
from amplitude_intercom.engine.delivery.contact_locks import (
    MOST_WAIT_S,
    ContactLocks,
    LockedContacts,
)
from amplitude_intercom.engine.delivery.missing_contacts import (
    MERGED_S,
    MOST_MISSING,
    MergedUsers,
    MissingContacts,
)
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.known_contacts import ContactKey
from support.virtual import in_virtual_time

MIRA = ContactKey(1, "external_id", "mira")
ANN = MIRA._replace(value="ann")
NOT_THERE = Failure(DeadReason.USER_NOT_FOUND)


async def write(locked: LockedContacts, key: ContactKey, seconds: float, said: list[str]) -> None:
    try:
        with ContactLocks(locked) as locks:
            await locks.take(key)
            await locks.take(key)  # is its own already
            said.append(f"from {anyio.current_time():.1f}")
            await anyio.sleep(seconds)
    except NotNow:
        said.append(f"not at {anyio.current_time():.1f}")


@in_virtual_time
async def test_a_contact_is_written_by_one_turn_at_a_time_and_another_waits_a_second() -> None:
    locked: LockedContacts = {}
    said: list[str] = []
    async with anyio.create_task_group() as tasks:
        for seconds in (0.6, 0.6, 0.6):
            tasks.start_soon(write, locked, MIRA, seconds, said)
        tasks.start_soon(write, locked, ANN, 5.0, said)
    assert said == ["from 0.0", "from 0.0", "from 0.6", f"not at {MOST_WAIT_S:.1f}"]
    assert not locked  # what nobody writes is forgotten


@in_virtual_time
async def test_a_cancelled_wait_leaves_the_contact_to_others() -> None:
    locked: LockedContacts = {}
    said: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, locked, MIRA, 0.5, said)
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.2):
            await write(locked, MIRA, 0.0, said)
        await write(locked, MIRA, 0.0, said)
    assert said == ["from 0.0", "from 0.5"]
    assert not locked


@in_virtual_time
async def test_of_users_that_are_not_there_so_many_are_remembered() -> None:
    missing = MissingContacts()
    for n in range(MOST_MISSING + 1):
        missing.note(MIRA._replace(value=f"user-{n}"), NOT_THERE, lambda _: 60.0)
    assert missing.of(MIRA._replace(value="user-0")) is None
    assert missing.of(MIRA._replace(value="user-1")) == NOT_THERE
    await anyio.sleep(61)
    assert missing.of(MIRA._replace(value="user-1")) is None


@in_virtual_time
async def test_the_more_answers_say_that_a_user_is_not_there_the_longer_it_is_believed() -> None:
    missing, asked = MissingContacts(), []

    def wait_s(answers: int) -> float:
        asked.append(answers)
        return 60.0 * answers

    missing.note(MIRA, NOT_THERE, wait_s)
    missing.note(MIRA, NOT_THERE, wait_s)
    missing.forget(MIRA)
    missing.note(MIRA, NOT_THERE, wait_s)
    assert asked == [1, 2, 1]


@in_virtual_time
async def test_that_a_user_was_merged_is_believed_for_a_while_and_of_so_many() -> None:
    heirs = MergedUsers()
    for n in range(MOST_MISSING + 1):
        heirs.note(MIRA._replace(value=f"user-{n}"), "5f")
    assert heirs.of(MIRA._replace(value="user-0")) == ""
    assert heirs.of(MIRA._replace(value="user-1")) == "5f"
    await anyio.sleep(MERGED_S + 1)
    assert heirs.of(MIRA._replace(value="user-1")) == ""
