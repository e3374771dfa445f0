"""Room for bodies, and limits of keys."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from support import virtual
from transports.amplitude import Head
from transports.limits import LEAST_COST_BYTES, MAX_KEYS, KeyLimits, Room
from transports.uploads import TOO_LARGE, BadUpload

SIZES = st.integers(0, 5 * LEAST_COST_BYTES)


@given(st.lists(st.tuples(SIZES, st.integers(0, 9), st.booleans()), max_size=20))
def test_no_more_than_the_room_is_held_and_whoever_waits_gets_in(
    visits: list[tuple[int, int, bool]],
) -> None:
    async def main() -> None:
        room, held, served = Room(4 * LEAST_COST_BYTES), 0, 0

        async def visit(size: int, duration: int) -> None:
            nonlocal held, served
            cost = min(max(size, LEAST_COST_BYTES), 4 * LEAST_COST_BYTES)
            async with room.hold(size):
                held += cost
                assert held <= 4 * LEAST_COST_BYTES
                try:
                    await asyncio.sleep(duration)
                finally:
                    held -= cost
            served += 1

        tasks = [asyncio.create_task(visit(size, lasts)) for size, lasts, _ in visits]
        await asyncio.sleep(3)
        given_up = [t for t, (_, _, gives_up) in zip(tasks, visits, strict=True) if gives_up]
        running = held
        for task in given_up:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert running <= 4 * LEAST_COST_BYTES
        assert served >= len(visits) - len(given_up)
        async with asyncio.timeout(1), room.hold(4 * LEAST_COST_BYTES):
            pass  # nothing of it is lost

    virtual.run(main)


def test_the_first_to_come_is_the_first_in_though_a_smaller_one_would_fit() -> None:
    async def main() -> None:
        room, entered = Room(4 * LEAST_COST_BYTES), list[str]()

        async def visit(name: str, size: int) -> None:
            async with room.hold(size):
                entered.append(name)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as tasks:
            for name, size in (("first", 3), ("large", 4), ("small", 1)):
                tasks.create_task(visit(name, size * LEAST_COST_BYTES))
        assert entered == ["first", "large", "small"]

    virtual.run(main)


HEADS = [Head("a", user_id=f"user-{n % 2}", device_id="device") for n in range(30)]


def test_a_key_gets_its_events_a_second_and_hears_which_of_the_surplus_are_whose() -> None:
    async def main() -> None:
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

    virtual.run(main)


def test_what_could_never_fit_is_to_be_sent_in_smaller_pieces() -> None:
    async def main() -> None:
        assert await KeyLimits(None, 2.0).refuse("key", HEADS[:21]) is TOO_LARGE

    virtual.run(main)


def test_a_key_gets_its_requests_a_second() -> None:
    async def main() -> None:
        limits = KeyLimits(0.3, None)
        for _ in range(3):
            assert await limits.refuse("key", HEADS) is None
        refused = await limits.refuse("key", HEADS[:2])
        assert refused is not None
        assert (refused.code, refused.throttled_events) == (429, [0, 1])
        await asyncio.sleep(4)
        assert await limits.refuse("key", HEADS) is None

    virtual.run(main)


def test_without_limits_nothing_is_refused_and_nothing_remembered() -> None:
    async def main() -> None:
        limits = KeyLimits(None, None)
        for n in range(1_000):
            assert await limits.refuse(f"key-{n}", HEADS) is None
        assert not limits._keys
        limited = KeyLimits(1.0, 1.0)
        for n in range(3 * MAX_KEYS):
            await limited.refuse(f"key-{n}", HEADS[:1])
        assert len(limited._keys) == MAX_KEYS

    virtual.run(main)
