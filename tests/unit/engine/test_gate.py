"""The gate: pace, pauses, and whose trouble a failure is. In virtual time, with a scripted wire."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from amplitude_intercom.engine.errors import ParkUser
from amplitude_intercom.engine.gate import (
    Gate,
    GateClosed,
    Health,
    Meaning,
    endpoint_of,
    meaning_of,
)
from amplitude_intercom.engine.pace import pause_s
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request, send_event
from amplitude_intercom.transports.reasons import NoAnswerCause
from support import virtual

OK = Answer(202, {}, b"")
WELL = Answer(200, {}, b'{"type": "admin", "app": {"type": "app"}}')
Script = Callable[[Request, float], Answer]


class Wire:
    """Answers as a function of the request and the second; remembers when each call came."""

    def __init__(self, script: Script, latency_s: float = 0.05) -> None:
        self._script = script
        self._latency_s = latency_s
        self.calls: list[tuple[float, Request]] = []

    async def send(self, request: Request) -> Answer:
        at_s = virtual.current().now_s
        self.calls.append((at_s, request))
        await anyio.sleep(self._latency_s)
        answer = self._script(request, at_s)
        return WELL if answer is OK and request.path == "/me" else answer

    def times(self) -> list[float]:
        return [at_s for at_s, _ in self.calls]


def gate(wire: Wire, per_minute: int = 6_000, in_flight: int = 100) -> Gate:
    loop = virtual.current()
    dice = itertools.cycle([0.1, 0.9, 0.5])
    return Gate(
        wire,
        requests_per_minute=per_minute,
        max_in_flight=in_flight,
        now_s=loop.wall_s,
        jitter=lambda: next(dice),
    )


def request(text: str) -> Request:
    return send_event(text.encode())


def most_in_a_window(times: list[float], span_s: float = 10.0) -> int:
    ordered = sorted(times)
    return max(sum(start <= t < start + span_s for t in ordered) for start in ordered)


async def call_all(one: Gate, users: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for user in users:
            tasks.start_soon(one.call, request(user), user)


@pytest.mark.parametrize("per_minute", [60, 500, 10_000])
def test_no_window_gets_more_than_the_limit_and_nearly_all_of_it_is_used(per_minute: int) -> None:
    async def scenario() -> None:
        wire = Wire(lambda r, at: OK)
        count = per_minute // 2
        await call_all(gate(wire, per_minute), [f"u{n}" for n in range(count)])
        assert most_in_a_window(wire.times()) <= per_minute / 6
        assert virtual.current().now_s <= 30 / (1 - 6 / per_minute) * 1.015 + 0.1

    virtual.run(scenario)


@pytest.mark.parametrize(("first", "then"), [(10_000, 83), (500, 1_667)])
def test_the_limit_that_the_server_names_is_followed_down_and_up(first: int, then: int) -> None:
    async def scenario() -> None:
        named = Answer(202, {"x-ratelimit-limit": str(then)}, b"")
        wire = Wire(lambda r, at: named)
        one = gate(wire, first)
        await one.call(request("first"), "first")
        assert one.limit == then
        began = virtual.current().now_s
        await call_all(one, [f"u{n}" for n in range(then * 3)])
        assert most_in_a_window([t for t in wire.times() if t >= began]) <= then
        assert virtual.current().now_s - began <= 30 * 1.03

    virtual.run(scenario)


@pytest.mark.parametrize("absurd", ["0", "-1", "many", "", "99999999999999999999", "1.5"])
def test_absurd_limits_are_passed_over(absurd: str) -> None:
    async def scenario() -> None:
        wire = Wire(lambda r, at: Answer(202, {"x-ratelimit-limit": absurd}, b""))
        one = gate(wire)
        await one.call(request("u"), "u")
        assert one.limit == 1_000

    virtual.run(scenario)


def test_a_429_pauses_everybody_until_the_reset_and_charges_nobody() -> None:
    async def scenario() -> None:
        reset = int(virtual.EPOCH_S) + 8
        refused = Answer(429, {"x-ratelimit-reset": str(reset)}, b"")
        wire = Wire(lambda r, at: refused if 1.0 <= at < 8.0 else OK)
        one = gate(wire)
        users = [f"u{n}" for n in range(500)]
        await call_all(one, users)
        times = wire.times()
        late = [t for t in times if 1.0 <= t < 8.0]
        assert 1 <= len(late) <= 10  # those that were out when the first 429 came
        assert len(times) == len(users) + len(late)
        assert one.health is Health.OPEN

    virtual.run(scenario)


def test_an_outage_is_probed_one_call_at_a_time_and_charges_nobody() -> None:
    async def scenario() -> None:
        def script(_: Request, at: float) -> Answer:
            if 1.0 <= at < 3600.0:
                raise NoAnswer(NoAnswerCause.REFUSED)
            return OK

        wire = Wire(script)
        one = gate(wire)
        await call_all(one, [f"u{n}" for n in range(300)])
        during = [t for t in wire.times() if 10.0 <= t < 3600.0]
        gaps = [b - a for a, b in itertools.pairwise(during)]
        assert min(gaps) >= 4.5  # half of the longest back-off, at least
        assert max(gaps) <= 10.5
        assert virtual.current().now_s < 3600 + 15

    virtual.run(scenario)


def test_a_429_to_a_probe_is_a_pause_too() -> None:
    async def scenario() -> None:
        refused = Answer(429, {"x-ratelimit-reset": str(int(virtual.EPOCH_S) + 20)}, b"")

        def script(_: Request, at: float) -> Answer:
            if at < 5:
                raise NoAnswer(NoAnswerCause.REFUSED)
            return refused if at < 20 else OK

        wire = Wire(script)
        await call_all(gate(wire), [f"u{n}" for n in range(10)])
        assert len([at for at in wire.times() if 5 <= at < 20]) <= 2

    virtual.run(scenario)


def test_remaining_of_zero_on_every_answer_does_not_stop_the_calls() -> None:
    async def scenario() -> None:
        headers = {
            "x-ratelimit-limit": "1000",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": str(int(virtual.EPOCH_S) + 5),
        }
        wire = Wire(lambda r, at: Answer(202, headers, b""))
        await call_all(gate(wire), [f"u{n}" for n in range(2_000)])
        assert virtual.current().now_s < 21

    virtual.run(scenario)


def test_one_users_trouble_is_its_own_when_others_are_answered() -> None:
    async def scenario() -> None:
        poison = Answer(500, {}, b"<html>")
        wire = Wire(lambda r, at: poison if r.body == b"poison" else OK)
        one = gate(wire)

        async def others() -> None:
            for n in range(50):
                await one.call(request("fine"), f"u{n % 7}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            with pytest.raises(ParkUser) as parked:
                await one.call(request("poison"), "poisoned")
        assert parked.value.failure.status == 500
        assert one.health is Health.OPEN
        assert len(wire.calls) == 51

    virtual.run(scenario)


def test_with_nobody_else_calling_the_destination_itself_is_asked_whose_trouble_it_is() -> None:
    async def scenario() -> None:
        poison = Answer(500, {}, b"")
        wire = Wire(lambda r, at: poison if r.path == "/events" else OK)
        with pytest.raises(ParkUser):
            await gate(wire).call(request("alone"), "alone")
        assert [r.path for _, r in wire.calls] == ["/events", "/me"]

    virtual.run(scenario)


def test_a_refused_token_is_probed_with_me_and_deliveries_resume() -> None:
    async def scenario() -> None:
        wire = Wire(lambda r, at: OK if at > 60 else Answer(401, {}, b""))
        one = gate(wire)
        await call_all(one, [f"u{n}" for n in range(20)])
        probes = [r.path for at, r in wire.calls if 1 < at < 60]
        assert probes
        assert set(probes) == {"/me"}
        assert one.health is Health.OPEN

    virtual.run(scenario)


def test_a_closed_gate_lets_nothing_more_leave() -> None:
    async def scenario() -> None:
        one = gate(Wire(lambda r, at: OK))
        one.close()
        with pytest.raises(GateClosed):
            await one.call(request("late"), "late")

    virtual.run(scenario)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"x-ratelimit-reset": "1800000007"}, 7.0),
        ({"x-ratelimit-reset": "1799999990"}, 10.0),  # in the past: a window
        ({"x-ratelimit-reset": "1900000000"}, 10.0),  # absurd: a window
        ({}, 10.0),
        # Our clock is an hour off, and the server says what time it is there.
        ({"x-ratelimit-reset": "1511540122", "date": "Fri, 24 Nov 2017 16:15:17 GMT"}, 5.0),
    ],
)
def test_a_pause_lasts_until_the_reset_by_the_servers_own_clock(
    headers: dict[str, str], wait_s: float
) -> None:
    assert pause_s(Answer(429, headers, b""), 1_800_000_000.0) == wait_s


@given(status=st.integers(100, 599))
@settings(max_examples=200)
def test_every_status_has_a_meaning(status: int) -> None:
    answered = 200 <= status < 300 or (400 <= status < 500 and status not in (401, 403, 408, 429))
    assert (meaning_of(status) is Meaning.ANSWERED) == answered


def test_calls_are_counted_by_endpoint_and_not_by_contact() -> None:
    assert endpoint_of("PUT", "/contacts/abc") == "PUT /contacts/{id}"
    assert endpoint_of("POST", "/contacts/abc/unarchive") == "POST /contacts/{id}/unarchive"
    assert endpoint_of("POST", "/contacts/search") == "POST /contacts/search"
    assert endpoint_of("GET", "/me") == "GET /me"


def test_an_outage_that_a_429_interrupts_is_one_line_when_it_begins_and_one_when_it_ends() -> None:
    async def scenario() -> None:
        def script(request: Request, at_s: float) -> Answer:
            if at_s < 20:
                return Answer(503, {}, b"")
            if at_s < 21:
                return Answer(429, {"x-ratelimit-reset": str(int(virtual.EPOCH_S) + 24)}, b"")
            return Answer(503, {}, b"") if at_s < 60 else OK

        with capture_logs() as lines:
            one = gate(Wire(script))
            with anyio.move_on_after(120):
                await call_all(one, [f"u{n}" for n in range(20)])
        said = [line["event"] for line in lines if line["log_level"] == "warning"]
        assert ["not answer" in said[0], "answers again" in said[1]] == [True, True]
        assert len(said) == 2

    virtual.run(scenario)


HOSTILE_DATES = [
    "",
    "yesterday",
    "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    "Mon, 01 Jan 0001 00:00:00 GMT",
    f"Mon, 01 Jan 2026 {'9' * 5_000}:00:00 GMT",
]


@pytest.mark.parametrize("date", HOSTILE_DATES)
def test_a_date_that_is_none_counts_as_absent(date: str) -> None:
    headers = {"date": date, "x-ratelimit-reset": "1800000007"}
    assert 0 < pause_s(Answer(429, headers, b""), 1_800_000_000.0) <= 10


@pytest.mark.parametrize("per_minute", [6, 60])
def test_closed_it_lets_nobody_wait_for_the_pace(per_minute: int) -> None:
    async def scenario() -> None:
        wire = Wire(lambda r, at: OK)
        one = gate(wire, per_minute, in_flight=4)
        closed = []

        async def call(user: str) -> None:
            try:
                await one.call(request(user), user)
            except GateClosed:
                closed.append(user)

        async with anyio.create_task_group() as tasks:
            for n in range(200):
                tasks.start_soon(call, f"u{n}")
            await anyio.sleep(0.5)
            made = len(wire.calls)
            one.close()
        assert virtual.current().now_s < 0.6
        assert (len(wire.calls), len(closed)) == (made, 200 - made)

    virtual.run(scenario)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_stranger_between_does_not_set_the_pace(status: int) -> None:
    async def scenario() -> None:
        page = Answer(status, {"x-ratelimit-limit": "1"}, b"<html>blocked</html>")
        wire = Wire(lambda r, at: page if at < 1 else OK)
        one = gate(wire)
        await call_all(one, [f"u{n}" for n in range(5)])
        assert one.limit == 1_000

    virtual.run(scenario)
