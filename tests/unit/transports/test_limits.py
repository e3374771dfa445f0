"""A budget of bytes for bodies, and limits of keys."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.transports.amplitude import Head
from amplitude_intercom.transports.limits import (
    LEAST_COST_BYTES,
    MAX_KEYS,
    ByteBudget,
    HeldBody,
    KeyLimits,
)
from amplitude_intercom.transports.upload_answers import TOO_LARGE, BadUpload
from support.virtual import in_virtual_time

MAX = 4 * LEAST_COST_BYTES
SIZES = st.integers(0, 5 * LEAST_COST_BYTES)


@given(st.lists(st.tuples(st.lists(SIZES, max_size=4), st.integers(0, 9), st.booleans())))
@in_virtual_time
async def test_no_more_bytes_than_the_limit_are_held_and_waiting_requests_get_in(
    visits: list[tuple[list[int], int, bool]],
) -> None:
    budget, served = ByteBudget(MAX, LEAST_COST_BYTES), 0
    held: list[int] = []

    async def visit(sizes: list[int], duration: int) -> None:
        nonlocal served
        with budget.hold() as hold:
            held.append(0)
            mine = len(held) - 1
            try:
                await hold.grow(LEAST_COST_BYTES)
                for size in sorted(sizes):
                    await hold.grow(max(size, hold.size))
                    held[mine] = hold.size
                    # The oldest alone may go beyond.
                    assert sum(held) - max(held) <= MAX
                    await asyncio.sleep(duration)
            finally:
                held[mine] = 0
        served += 1

    tasks = [asyncio.create_task(visit(sizes, lasts)) for sizes, lasts, _ in visits]
    await asyncio.sleep(3)
    given_up = [t for t, (_, _, gives_up) in zip(tasks, visits, strict=True) if gives_up]
    for task in given_up:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in ended if isinstance(error, AssertionError)]
    assert served >= len(visits) - len(given_up)
    async with asyncio.timeout(1):
        with budget.hold() as hold, budget.hold() as another:
            for each in (hold, another):
                await each.grow(LEAST_COST_BYTES)
            await hold.grow(MAX // 2)  # nothing of it is lost


@in_virtual_time
async def test_requests_that_are_all_half_there_do_not_wait_for_one_another() -> None:
    budget, done = ByteBudget(MAX), list[int]()

    async def visit(number: int) -> None:
        with budget.hold() as hold:
            for size in range(LEAST_COST_BYTES, MAX, LEAST_COST_BYTES):
                await hold.grow(size)
                await asyncio.sleep(0.1)
        done.append(number)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(visit(number))
    assert sorted(done) == list(range(8))
    assert done[0] == 0


@in_virtual_time
async def test_one_address_holds_a_half_and_large_requests_leave_a_half_to_small_ones() -> None:
    small = LEAST_COST_BYTES

    async def _waits(*growing: Coroutine[Any, Any, bool]) -> bool:
        tasks = [asyncio.ensure_future(piece) for piece in growing]
        done, pending = await asyncio.wait(tasks, timeout=1)
        for task in pending:
            task.cancel()
        await asyncio.wait(tasks)
        return not done

    budget = ByteBudget(16 * small, 2 * small)
    with ExitStack() as stack:

        async def enter(address: str, size: int = small) -> HeldBody:
            hold = stack.enter_context(budget.hold(address))
            await hold.grow(size)
            return hold

        await enter("a", 2 * small)
        many = [await enter("a") for _ in range(6)]
        with budget.hold("a") as one_more:
            assert await _waits(one_more.grow(small), many[0].grow(2 * small))  # a half
        other = await enter("b")  # though the first of them waits
        await other.grow(2 * small)
        assert await _waits(other.grow(3 * small))  # large: it would have to leave a half
        for address in "cdefg":
            await enter(address)


HEADS = [Head("a", user_id=f"user-{n % 2}", device_id="device") for n in range(30)]


@in_virtual_time
async def test_a_key_gets_its_events_a_second_and_the_surplus_is_named_by_user() -> None:
    limits = KeyLimits(None, 2.0)  # twenty at once, as clients send in bursts
    assert await limits.refuse("key", HEADS[:18]) is None
    assert await limits.refuse("key", HEADS[:5]) == BadUpload(
        429,
        "Too many requests for some devices and users",
        eps_threshold=2,
        throttled_devices={"device": 3},
        throttled_users={"user-0": 2, "user-1": 1},
        throttled_events=[2, 3, 4],
    )
    assert await limits.refuse("key", HEADS[:2]) is None  # the refusal cost nothing
    assert await limits.refuse("another", HEADS[:20]) is None
    await asyncio.sleep(5)
    assert await limits.refuse("key", HEADS[:10]) is None
    assert await limits.refuse("key", HEADS[:1]) is not None


@in_virtual_time
async def test_a_request_that_can_never_fit_is_to_be_sent_in_smaller_pieces() -> None:
    assert await KeyLimits(None, 2.0).refuse("key", HEADS[:21]) is TOO_LARGE


@in_virtual_time
async def test_a_key_gets_its_requests_a_second() -> None:
    limits = KeyLimits(0.3, None)
    for _ in range(3):
        assert await limits.refuse("key", HEADS) is None
    refused = await limits.refuse("key", HEADS[:2])
    assert refused is not None
    assert (refused.code, refused.throttled_events) == (429, [0, 1])
    await asyncio.sleep(4)
    assert await limits.refuse("key", HEADS) is None


@in_virtual_time
async def test_without_limits_nothing_is_refused_and_nothing_remembered() -> None:
    limits = KeyLimits(None, None)
    for n in range(1_000):
        assert await limits.refuse(f"key-{n}", HEADS) is None
    assert not limits._keys
    limited = KeyLimits(1.0, 1.0)
    for n in range(3 * MAX_KEYS):
        await limited.refuse(f"key-{n}", HEADS[:1])
    assert len(limited._keys) == MAX_KEYS
