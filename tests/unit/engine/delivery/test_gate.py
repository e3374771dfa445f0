"""The gate: whether a call leaves, and what comes of it. In virtual time, with a scripted wire."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from amplitude_intercom.engine.delivery.calls import (
    NOBODY,
    Answered,
    Caller,
    Cause,
    NotAnswered,
    endpoint_of,
    is_failure,
)
from amplitude_intercom.engine.delivery.gate import Gate, State
from amplitude_intercom.engine.delivery.health import Blame, Who
from amplitude_intercom.engine.delivery.token_memory import TokenMemory
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request, me, send_event
from amplitude_intercom.transports.reasons import NoAnswerCause
from support import virtual
from support.virtual import in_virtual_time

EVENTS = "POST /events"
LIST = b'{"type": "error.list", "errors": [{"code": "not_found", "message": "no"}]}'
PAGE = b"<html><body>Sorry</body></html>"
OK = Answer(202, {}, b"")
WELL = Answer(200, {}, b'{"type": "admin", "app": {"type": "app"}}')
Script = Callable[[Request, float], Answer]


class Wire:
    """Answers as a function of the request and the second; remembers when each call came."""

    def __init__(self, script: Script, latency_s: float = 0.05) -> None:
        self._script = script
        self.latency_s = latency_s
        self.calls: list[tuple[float, Request]] = []

    async def send(self, request: Request) -> Answer:
        at_s = virtual.current().now_s
        self.calls.append((at_s, request))
        await anyio.sleep(self.latency_s)
        answer = self._script(request, at_s)
        return WELL if answer is OK and request.path == "/me" else answer

    def times(self, path: str = "") -> list[float]:
        return [at_s for at_s, request in self.calls if request.path.startswith(path)]


def answers(answer: Answer, *, me: Answer | None = None) -> Script:
    """Return a script of one answer; ``me`` has another, if any."""
    return lambda request, _: me if me and request.path == "/me" else answer


class User(Caller):
    """Who calls."""

    def __init__(self, name: str) -> None:
        self.who: Who = ("sync", name)
        self.failed_before = False
        self.departures = 0

    def note_departure(self) -> None:
        self.departures += 1


def gate(wire: Wire, per_minute: int = 60_000, in_flight: int = 100) -> Gate:
    loop = virtual.current()
    dice = itertools.cycle([0.1, 0.9, 0.5])
    made = Gate(
        wire,
        requests_per_minute=per_minute,
        max_in_flight=in_flight,
        now_s=loop.wall_s,
        jitter=lambda: next(dice),
    )
    made.begin()
    return made


def event(text: str = "{}") -> Request:
    return send_event(text.encode())


async def calls(one: Gate, users: list[str]) -> list[Answered | NotAnswered]:
    """Make a call for each user, all at once."""
    found: list[Answered | NotAnswered] = []

    async def call(user: str) -> None:
        found.append(await one.call(event(user), User(user)))

    async with anyio.create_task_group() as tasks:
        for user in users:
            tasks.start_soon(call, user)
    return found


def causes(found: list[Answered | NotAnswered]) -> Counter[Cause]:
    return Counter(outcome.cause for outcome in found if isinstance(outcome, NotAnswered))


@pytest.mark.parametrize(("path", "is_well"), [("/contacts", True), ("/contacts/5", False)])
@in_virtual_time
async def test_a_409_to_a_create_says_that_the_endpoint_is_well(path: str, is_well: bool) -> None:
    """Where all contacts are there already, nothing else would say so."""

    one = gate(Wire(lambda _, __: Answer(409, {}, LIST)))
    request = Request("POST" if is_well else "PUT", path, b"{}")
    await one.call(request, User("ann"))
    endpoint = endpoint_of(request.method, request.path)
    assert one.health.of(endpoint).has_served(("sync", "ann")) is is_well


@in_virtual_time
async def test_an_answer_of_intercoms_is_the_call_s_and_anything_else_is_evidence() -> None:
    answers = {
        b"taken": OK,
        b"unknown": Answer(404, {}, LIST),
        b"refused": Answer(422, {}, LIST),
        b"broken": Answer(500, {}, LIST),
        b"late": Answer(408, {}, LIST),
        b"moved": Answer(302, {}, b""),
        b"page": Answer(200, {"content-type": "text/html"}, PAGE),
        b"stranger": Answer(404, {"content-type": "text/html"}, PAGE),
    }
    one = gate(Wire(lambda request, _: answers[request.body or b""]))
    by_text = {}
    for text in answers:
        by_text[text] = await one.call(send_event(text), User("u"))
    statuses = {text: o.answer.status for text, o in by_text.items() if isinstance(o, Answered)}
    assert statuses == {b"taken": 202, b"unknown": 404, b"refused": 422}
    failed = [o for o in by_text.values() if isinstance(o, NotAnswered)]
    assert {o.cause for o in failed} == {Cause.FAILED}
    assert {o.failure.status for o in failed if o.failure} == {500, 408, 302, 200, 404}
    assert {o.endpoint for o in failed} == {EVENTS}


@in_virtual_time
async def test_no_answer_is_evidence_with_its_cause() -> None:
    def script(_: Request, __: float) -> Answer:
        raise NoAnswer(NoAnswerCause.RESET)

    outcome = await gate(Wire(script)).call(event(), User("u"))
    assert isinstance(outcome, NotAnswered)
    assert outcome.failure is not None
    assert (outcome.failure.status, outcome.failure.code) == (0, "reset")


@in_virtual_time
async def test_a_call_is_made_once_at_any_status() -> None:
    for status in (500, 429, 401, 403, 404, 202):
        wire = Wire(answers(Answer(status, {}, LIST)))
        await gate(wire).call(event(), User("u"))
        assert len(wire.times("/events")) == 1


# --- the budget -----------------------------------------------------------------------------


@in_virtual_time
async def test_after_a_429_nothing_leaves_until_the_reset() -> None:
    reset = int(virtual.EPOCH_S) + 8
    refused = Answer(429, {"x-ratelimit-reset": str(reset)}, LIST)
    wire = Wire(lambda r, at: refused if at < 8.0 else OK)
    one = gate(wire)
    await calls(one, ["warm-up"])
    made = len(wire.calls)
    found = await calls(one, [f"u{n}" for n in range(50)])
    assert causes(found) == {Cause.NOT_SENT: 50}
    throttled = one.state
    assert one.free(0, virtual.current().now_s) == 0
    await anyio.sleep(9.0)
    assert len(wire.calls) == made
    assert one.free(0, virtual.current().now_s) == 1  # then two, four …
    assert isinstance(await one.call(event(), User("u")), Answered)
    assert (throttled, one.state) == (State.THROTTLED, State.WELL)


PLENTY = {"x-ratelimit-limit": "10000", "x-ratelimit-remaining": "9000"}


@in_virtual_time
async def test_a_429_that_the_budget_contradicts_is_one_user_s_failure() -> None:
    refused = Answer(429, {}, LIST)
    answers = {b"well": Answer(202, PLENTY, b""), b"poison": refused}
    one = gate(Wire(lambda r, at: answers[r.body or b""]))
    await one.call(event("well"), User("well"))
    outcome = await one.call(event("poison"), User("poison"))
    assert isinstance(outcome, NotAnswered)
    assert (outcome.cause, outcome.blame) == (Cause.FAILED, Blame.NOT_KNOWN)
    assert isinstance(await one.call(event("well"), User("well")), Answered)


@in_virtual_time
async def test_two_users_with_a_429_within_a_second_are_the_budget_after_all() -> None:
    answers = {b"well": Answer(202, PLENTY, b""), b"poison": Answer(429, {}, LIST)}
    one = gate(Wire(lambda r, at: answers[r.body or b""]))
    await one.call(event("well"), User("well"))
    outcomes = [await one.call(event("poison"), User(f"u{n}")) for n in range(2)]
    assert causes(outcomes) == {Cause.FAILED: 1, Cause.THROTTLED: 1}


# --- the token ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@in_virtual_time
async def test_a_refused_token_is_probed_with_me_and_nothing_else_until_it_is_taken(
    status: int,
) -> None:
    wire = Wire(lambda r, at: OK if at > 600 else Answer(status, {}, LIST))
    one = gate(wire)
    with capture_logs() as lines:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.watch_token)
            found = await calls(one, [f"u{n}" for n in range(20)])
            assert causes(found) == {Cause.TOKEN: 20}
            assert one.state is State.UNAUTHORIZED
            assert causes(await calls(one, ["later"])) == {Cause.NOT_SENT: 1}
            await anyio.sleep(700)
            assert isinstance(await one.call(event(), User("u")), Answered)
            tasks.cancel_scope.cancel()
    gaps = [b - a for a, b in itertools.pairwise(wire.times("/me"))]
    assert 30 <= max(gaps) <= 61
    assert len(gaps) <= 30
    assert [line["event"].partition(":")[0] for line in lines] == [
        "Intercom refuses the access token",
        "Intercom takes the access token again",
    ]


@in_virtual_time
async def test_a_crowd_of_403_while_me_is_well_are_failures_and_cost_one_look() -> None:
    wire = Wire(lambda r, at: Answer(403, {}, LIST) if r.path == "/events" else OK)
    one = gate(wire)
    found = await calls(one, [f"u{n}" for n in range(4)])
    assert causes(found) == {Cause.FAILED: 4}
    assert len(wire.times("/me")) == 1
    await anyio.sleep(10)
    await calls(one, ["u9"])
    assert len(wire.times("/me")) == 2


@in_virtual_time
async def test_where_me_has_no_answer_a_403_is_the_call_s_and_a_401_the_token_s() -> None:
    for status, cause in ((403, Cause.FAILED), (401, Cause.TOKEN)):
        refused = Answer(status, {}, LIST)
        wire = Wire(answers(refused, me=Answer(503, {}, b"")))
        outcome = await gate(wire).call(event(), User("u"))
        assert isinstance(outcome, NotAnswered)
        assert outcome.cause is cause


@in_virtual_time
async def test_calls_that_deliveries_can_do_without_may_be_forbidden() -> None:
    one = gate(Wire(lambda r, at: Answer(403, {}, LIST)))
    outcome = await one.call(event(), NOBODY, optional=True)
    assert isinstance(outcome, Answered)


# --- circuits -------------------------------------------------------------------------------


async def open_circuit(one: Gate) -> None:
    for n in range(6):
        await one.call(event(), User(f"opening-{n}"))
        await anyio.sleep(0.3)
    assert one.health.open_circuits == [EVENTS]


@in_virtual_time
async def test_while_a_circuit_is_open_only_the_chosen_probe_leaves_and_other_endpoints_do() -> (
    None
):
    down = True
    wire = Wire(lambda r, at: Answer(503, {}, b"") if down and r.path == "/events" else OK)
    one = gate(wire)
    await open_circuit(one)
    made = len(wire.calls)
    found = await calls(one, [f"u{n}" for n in range(50)])
    assert causes(found) == {Cause.CIRCUIT_OPEN: 50}
    assert len(wire.calls) == made
    assert isinstance(await one.call(me(), User("u")), Answered)
    assert one.health.open_circuits == [EVENTS]  # which ``/me`` does not close
    probe = User("probe")
    one.health.of(EVENTS).circuit.probing = ("sync", "another")
    assert causes([await one.call(event(), probe)]) == {Cause.CIRCUIT_OPEN: 1}
    one.health.of(EVENTS).circuit.probing = probe.who
    assert causes([await one.call(event(), probe)]) == {Cause.FAILED: 1}
    down = False
    assert isinstance(await one.call(event(), probe), Answered)
    assert one.health.open_circuits == []


@in_virtual_time
async def test_a_probe_that_meets_another_circuit_that_is_open_probes_that_one_too() -> None:
    """Else two endpoints that are out could each wait for the other for ever."""

    one = gate(Wire(lambda r, at: OK))
    for endpoint in (EVENTS, "GET /me"):
        one.health.of(endpoint).circuit.open(0.0)
    await anyio.sleep(1.0)
    probe = User("probe")
    one.health.of(EVENTS).circuit.probing = probe.who
    assert isinstance(await one.call(me(), probe), Answered)
    assert isinstance(await one.call(event(), probe), Answered)
    assert one.health.open_circuits == []


@in_virtual_time
async def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends() -> None:
    down = True
    one = gate(Wire(lambda r, at: Answer(503, {}, b"") if down else OK))
    with capture_logs() as lines:
        await open_circuit(one)
        one.take_news(virtual.current().now_s)
        await calls(one, [f"u{n}" for n in range(20)])
        down = False
        one.health.of(EVENTS).circuit.probing = ("sync", "probe")
        await one.call(event(), User("probe"))
        one.take_news(virtual.current().now_s)
    said = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert ["not answer" in said[0], "answers again" in said[1]] == [True, True]
    assert len(said) == 2


# --- calls that hang ------------------------------------------------------------------------


@in_virtual_time
async def test_calls_that_hang_give_their_slots_back_and_others_go_on() -> None:
    hangs = anyio.Event()

    class Hanging(Wire):
        async def send(self, request: Request) -> Answer:
            if request.body == b"hang":
                await hangs.wait()
                raise NoAnswer(NoAnswerCause.TIMEOUT)
            return await super().send(request)

    one = gate(Hanging(lambda r, at: OK), in_flight=40)
    await calls(one, ["first"])
    async with anyio.create_task_group() as tasks:
        for n in range(15):
            tasks.start_soon(one.call, event("hang"), User(f"h{n}"))
        await anyio.sleep(0.5)
        assert one.in_flight == 15
        before = one.free(0, virtual.current().now_s)
        await anyio.sleep(1.0)
        assert one.free(0, virtual.current().now_s) > before
        assert len([o for o in await calls(one, ["a", "b"]) if isinstance(o, Answered)]) == 2
        hangs.set()
    assert one.in_flight == 0


@in_virtual_time
async def test_of_too_many_that_hang_the_oldest_is_given_up_once_others_were_answered() -> None:
    class Hanging(Wire):
        async def send(self, request: Request) -> Answer:
            if request.body == b"hang":
                await anyio.sleep(3_600)
            return await super().send(request)

    one = gate(Hanging(lambda r, at: OK), in_flight=8)
    await calls(one, ["first"])
    given_up: list[Answered | NotAnswered] = []

    async def hang(n: int) -> None:
        given_up.append(await one.call(event("hang"), User(f"h{n}")))

    async with anyio.create_task_group() as tasks:
        for n in range(8):
            tasks.start_soon(hang, n)
            await anyio.sleep(0.1)
        for n in range(40):
            await anyio.sleep(0.5)
            one.free(0, virtual.current().now_s)
            await one.call(event(), User(f"w{n}"))
        assert given_up
        assert causes(given_up) == {Cause.FAILED: len(given_up)}
        assert one.in_flight < 8
        tasks.cancel_scope.cancel()


@in_virtual_time
async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    one = gate(Wire(lambda r, at: OK, latency_s=60.0))
    with anyio.move_on_after(1.0):
        await one.call(event(), User("u"))
    assert one.in_flight == 0


# --- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("per_minute", [6, 60])
@in_virtual_time
async def test_closed_it_lets_nobody_wait_for_the_pace(per_minute: int) -> None:
    wire = Wire(lambda r, at: OK)
    one = gate(wire, per_minute, in_flight=4)
    found: list[Answered | NotAnswered] = []

    async def call(user: str) -> None:
        found.append(await one.call(event(user), User(user)))

    async with anyio.create_task_group() as tasks:
        for n in range(200):
            tasks.start_soon(call, f"u{n}")
        await anyio.sleep(0.5)
        made = len(wire.calls)
        one.close()
    assert virtual.current().now_s < 0.6
    assert len(wire.calls) == made
    assert causes(found) == {Cause.NOT_SENT: 200 - made}


@pytest.mark.parametrize("status", [401, 403, 429])
@in_virtual_time
async def test_a_stranger_between_does_not_set_the_pace(status: int) -> None:
    page = Answer(status, {"x-ratelimit-limit": "1"}, PAGE)
    wire = Wire(lambda r, at: page if at < 1 else OK)
    one = gate(wire)
    before = one.limit
    await calls(one, [f"u{n}" for n in range(5)])
    assert one.limit == before


@given(status=st.integers(100, 599))
@settings(max_examples=200)
def test_a_status_is_a_failure_unless_it_tells_how_the_call_fared(status: int) -> None:
    assert is_failure(status) == (
        status < 200 or 300 <= status < 400 or status == 408 or status >= 500
    )


def test_calls_are_counted_by_endpoint_and_not_by_contact() -> None:
    assert endpoint_of("PUT", "/contacts/abc") == "PUT /contacts/{id}"
    assert endpoint_of("POST", "/contacts/abc/unarchive") == "POST /contacts/{id}/unarchive"
    assert endpoint_of("POST", "/contacts/search") == "POST /contacts/search"
    assert endpoint_of("GET", "/me") == "GET /me"


@in_virtual_time
async def test_calls_that_hang_do_not_count_in_the_ramp_after_a_429() -> None:
    """Three of them and one 429 once stopped the token until the last of them had ended."""

    one = gate(Wire(lambda _, __: OK))
    loop = virtual.current()
    for _ in range(3):
        one._in_flight.depart(EVENTS, loop.time(), lambda: None)
    await one.call(event(), User("ann"))
    await anyio.sleep(5)
    one.pace.throttled(1.0, loop.time())
    await anyio.sleep(2)
    assert one.free(0, loop.time()) == 1


@in_virtual_time
async def test_after_a_429_turns_that_were_chosen_and_have_not_left_count_in_the_ramp() -> None:
    one = gate(Wire(lambda _, __: OK))
    loop = virtual.current()
    await one.call(event(), User("ann"))
    one.pace.throttled(1.0, loop.time())
    await anyio.sleep(2)
    assert [one.free(undeparted, loop.time()) for undeparted in (0, 1, 2)] == [1, 0, -1]


@in_virtual_time
async def test_one_looks_again_when_a_call_has_become_one_that_hangs() -> None:
    """Its slot is free then, though nothing has come back."""

    one = gate(Wire(lambda _, __: OK), in_flight=2)
    loop = virtual.current()
    await one.call(event(), User("ann"))
    one._in_flight.depart(EVENTS, loop.time(), lambda: None)
    at_s = one.look_again_s(loop.time())
    assert at_s is not None
    before = one.free(0, loop.time())
    assert one.free(0, at_s + 0.001) == before + 1


@in_virtual_time
async def test_another_gate_goes_on_where_the_one_before_has_ended() -> None:
    """The limit that was named, the open circuit and the refused token are the token's."""

    def script(request: Request, at_s: float) -> Answer:
        if request.path == "/me":
            return OK if at_s < 10 else Answer(401, {}, LIST)
        return Answer(503, {}, PAGE) if at_s < 10 else Answer(401, {}, LIST)

    memory, wire = TokenMemory(100.0), Wire(script)

    def another(per_minute: int) -> Gate:
        made = Gate(
            wire,
            requests_per_minute=per_minute,
            max_in_flight=100,
            now_s=virtual.current().wall_s,
            memory=memory,
        )
        made.begin()
        return made

    assert another(1_200).limit == 200, "a guess is that of the settings"
    one = another(1_200)
    for second in range(3):
        await calls(one, [f"{second}-{n}" for n in range(4)])
        await anyio.sleep(1)
    one.pace.follow(500)
    one.close()
    two = another(600)
    assert (two.limit, two.health.open_circuits, two.state) == (500, [EVENTS], State.OUTAGE)
    assert causes(await calls(two, ["later"])) == {Cause.CIRCUIT_OPEN: 1}
    await anyio.sleep(10)
    assert causes([await two.call(Request("GET", "/x"), User("x"))]) == {Cause.TOKEN: 1}
    two.close()
    before = len(wire.calls)
    three = another(600)
    assert causes([await three.call(Request("GET", "/x"), User("x"))]) == {Cause.NOT_SENT: 1}
    assert (three.state, len(wire.calls)) == (State.UNAUTHORIZED, before)
