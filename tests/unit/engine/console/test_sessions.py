"""Sessions and attempts to sign in, as time goes by."""

from __future__ import annotations

import asyncio

import pytest

from amplitude_intercom.engine.console.access import Credential
from amplitude_intercom.engine.console.sessions import (
    ATTEMPTS,
    ATTEMPTS_S,
    IDLE_S,
    LONGEST_S,
    MAX_PEERS,
    MAX_SESSIONS,
    Sessions,
    SignInAttempts,
)
from amplitude_intercom.engine.console.tokens import TokenHolder
from support.virtual import in_virtual_time

HOLDER = TokenHolder(Credential("admin token", may_change=True), b"proof")
PEER = "127.0.0.1"


def of_everybody() -> Sessions:
    return Sessions(lambda holder: True)


@in_virtual_time
async def test_a_session_stands_for_its_token_at_its_address() -> None:
    sessions = of_everybody()
    name = sessions.open(HOLDER, PEER)
    found = sessions.find(name, PEER)
    assert found is not None
    assert found.credential == Credential("session of admin token", may_change=True)
    assert sessions.find(name, "127.0.0.2") is None
    assert sessions.find(name[:-1], PEER) is None
    assert sessions.find("", PEER) is None
    assert sessions.find("\ud800" * 10, PEER) is None
    assert sessions.find(name * 1_000, PEER) is None
    assert sessions.find(name, PEER) is found


@in_virtual_time
async def test_no_session_s_id_is_kept() -> None:
    sessions = of_everybody()
    name = sessions.open(HOLDER, PEER)
    assert name.encode() not in sessions._by_hash
    assert len({sessions.open(HOLDER, PEER) for _ in range(100)} | {name}) == 101


@in_virtual_time
async def test_a_session_ends_when_it_was_idle_for_long_and_not_before() -> None:
    sessions = of_everybody()
    name = sessions.open(HOLDER, PEER)
    for _ in range(3):
        await asyncio.sleep(IDLE_S - 1)
        assert sessions.find(name, PEER)
    await asyncio.sleep(IDLE_S)
    assert sessions.find(name, PEER) is None
    assert len(sessions) == 0


@in_virtual_time
async def test_a_session_that_a_page_keeps_alive_ends_as_well() -> None:
    sessions = of_everybody()
    name, lived_s = sessions.open(HOLDER, PEER), 0.0
    while sessions.find(name, PEER):
        await asyncio.sleep(IDLE_S / 2)
        lived_s += IDLE_S / 2
    assert lived_s == LONGEST_S


@in_virtual_time
async def test_the_session_that_was_unused_for_longest_makes_way() -> None:
    sessions = of_everybody()
    first, second = sessions.open(HOLDER, PEER), sessions.open(HOLDER, PEER)
    for _ in range(MAX_SESSIONS - 2):
        sessions.open(HOLDER, PEER)
    assert sessions.find(first, PEER)
    sessions.open(HOLDER, PEER)
    assert len(sessions) == MAX_SESSIONS
    assert sessions.find(first, PEER)
    assert sessions.find(second, PEER) is None


@in_virtual_time
async def test_sessions_end_with_their_token() -> None:
    right = {HOLDER}
    sessions = Sessions(right.__contains__)
    other = HOLDER._replace(proof=b"other")
    right.add(other)
    names = [sessions.open(HOLDER, PEER), sessions.open(HOLDER, PEER), sessions.open(other, PEER)]
    right.remove(HOLDER)
    assert [bool(sessions.find(name, PEER)) for name in names[::2]] == [False, True]
    sessions.end_wrong()
    assert len(sessions) == 1
    right.add(HOLDER)
    assert sessions.find(names[1], PEER) is None


@in_virtual_time
async def test_signing_out_ends_one_session() -> None:
    sessions = of_everybody()
    first, second = sessions.open(HOLDER, PEER), sessions.open(HOLDER, PEER)
    sessions.end(first)
    sessions.end(first)
    assert sessions.find(first, PEER) is None
    assert sessions.find(second, PEER)


@in_virtual_time
async def test_signing_in_may_be_tried_five_times_in_any_minute() -> None:
    attempts = SignInAttempts()
    for second in range(ATTEMPTS):
        assert attempts.wait_s(PEER) == 0, second
        await asyncio.sleep(1)
    assert attempts.wait_s(PEER) == pytest.approx(ATTEMPTS_S - ATTEMPTS, abs=0.01)
    assert attempts.wait_s("127.0.0.2") == 0
    await asyncio.sleep(ATTEMPTS_S - ATTEMPTS)
    assert attempts.wait_s(PEER) == 0
    assert attempts.wait_s(PEER) == pytest.approx(1, abs=0.01)


@in_virtual_time
async def test_an_ipv6_client_has_one_allowance_for_all_its_addresses() -> None:
    attempts = SignInAttempts()
    waits = [attempts.wait_s(f"2001:db8::{n:x}") for n in range(ATTEMPTS + 1)]
    assert [wait_s > 0 for wait_s in waits] == [False] * ATTEMPTS + [True]
    assert attempts.wait_s("2001:db8:0:1::1") == 0


@in_virtual_time
async def test_attempts_from_many_addresses_take_bounded_memory_and_are_forgotten() -> None:
    attempts = SignInAttempts()
    for n in range(3 * MAX_PEERS):
        attempts.wait_s(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    attempts.wait_s("x" * 1_000_000)
    assert len(attempts) == MAX_PEERS
    await asyncio.sleep(ATTEMPTS_S)
    attempts.wait_s(PEER)
    assert len(attempts) == 1
