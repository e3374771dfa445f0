"""``check --probe``: what it finds out, and that nothing of it stays. Mostly in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.clients import token_key, token_of
from amplitude_intercom.engine.commands import probe_answers as words
from amplitude_intercom.engine.commands import probing
from amplitude_intercom.engine.commands.probe import EVENT_NAME, Probe
from amplitude_intercom.engine.commands.probe_calls import PREFIX
from amplitude_intercom.engine.commands.probing import keep_counting
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import DataDirInUse, SettingsError, SpoolError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.intercom import Answer, RateHeaders, Request, Wire
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import virtual
from support.virtual import in_virtual_time

NOW_S = int(virtual.EPOCH_S)
FUTURE = str(NOW_S + 3_600)
CREATE = '"role":"user"'
"""What only the body of a create holds."""


class Between:
    """Somebody between a probe and the sandbox, who may change requests and answers."""

    def __init__(
        self,
        local: Sandbox,
        asked: Callable[[Request], Request] = lambda request: request,
        answered: Callable[[Request, Answer], Answer] = lambda _, answer: answer,
    ) -> None:
        self._wire = InProcess(local)
        self._asked = asked
        self._answered = answered

    async def send(self, request: Request) -> Answer:
        return self._answered(request, await self._wire.send(self._asked(request)))


class Found:
    """What a probe came to."""

    def __init__(self, probe: Probe, local: Sandbox) -> None:
        self.probe = probe
        self.local = local
        self.texts = {finding.key: finding.text for finding in probe.findings}
        self.levels = {finding.key: finding.level for finding in probe.findings}

    @property
    def states(self) -> set[str]:
        return {contact.state for contact in self.local.contacts.values()}

    @property
    def is_clean(self) -> bool:
        """Whether all contacts are archived test contacts, and nothing is said to be left."""
        ours = all((c.external_id or "").startswith(PREFIX) for c in self.local.contacts.values())
        return ours and self.states <= {"archived"} and words.LEFT not in self.texts


@in_virtual_time
async def probed(
    between: Callable[[Sandbox], Wire] = InProcess,
    *,
    events: bool = True,
    stop_s: float | None = None,
    now_s: float | None = None,
    **more: Any,
) -> Found:
    """Probe a sandbox; ``stop_s`` and ``now_s``: seconds until a first and a second signal."""

    loop = virtual.current()
    local = Sandbox(**{"now": loop.wall_s, "latency_s": 0.05, **more})
    stop, now = asyncio.Event(), asyncio.Event()
    for after_s, event in ((stop_s, stop), (now_s, now)):
        if after_s is not None:
            loop.call_later(after_s, event.set)
    probe = await probing.probe_one(between(local), stop, now, events=events, now_s=loop.wall_s)
    return Found(probe, local)


# --- the same event twice -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("workspace", "level", "text"),
    [
        ({}, "fact", "the same event sent twice is kept once; the second call costs one"),
        ({"keeps_duplicates": True}, "warning", "the same event sent twice is kept twice"),
        ({"event_lag_s": 1.5}, "fact", "the same event sent twice is kept once"),
        ({"event_lag_s": 60.0}, "fact", "whether the same event sent twice is kept once cannot be"),
    ],
)
def test_the_same_event_twice_is_kept_once_or_twice_or_not_seen_yet(
    workspace: dict[str, Any], level: str, text: str
) -> None:
    found = probed(**workspace)
    assert found.texts[words.SAME_EVENT].startswith(text)
    assert found.levels[words.SAME_EVENT] == level
    assert found.local.event_names == {EVENT_NAME}
    assert found.is_clean


def rates(*remaining: int, limit: int = 100, reset: int = 10) -> list[RateHeaders]:
    return [RateHeaders(limit, left, reset) for left in remaining]


@pytest.mark.parametrize(
    ("seen", "costs"),
    [
        (rates(100, 99, 98), True),
        (rates(100, 99, 99), False),
        (rates(99, 99, 98), False),
        (rates(100, 97, 96), None),
        (rates(100, 99), None),
        ([*rates(2, 1), *rates(100, reset=20)], None),
    ],
)
def test_a_second_call_costs_where_nothing_else_can_have_taken_it(
    seen: list[RateHeaders], costs: bool | None
) -> None:
    assert words.repeat_costs(seen) is costs


def test_no_event_is_sent_where_that_is_not_wanted() -> None:
    found = probed(events=False)
    assert not found.local.event_names
    assert not found.texts.keys() & {words.SAME_EVENT, words.FUTURE_EVENT}
    assert found.is_clean


def test_a_workspace_without_a_free_name_is_said_to_have_none() -> None:
    found = probed(max_event_names=0)
    assert "takes no further event name" in found.texts[words.SAME_EVENT]
    assert found.levels[words.SAME_EVENT] == "warning"
    assert words.ARCHIVED_ID in found.texts
    assert found.is_clean


def test_an_event_is_sent_again_until_its_contact_is_known() -> None:
    late = Fault(kind="status", status=404, path="/events", end_s=2.0)
    assert "is kept once" in probed(faults=[late]).texts[words.SAME_EVENT]


# --- an event of the future ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ([], "an event one hour ahead is taken with 202, and listed with its own time"),
        (
            [Fault(kind="status", status=400, contains=FUTURE[:-2])],
            "an event one hour ahead is refused with 400 (fault): Fault",
        ),
    ],
)
def test_an_event_an_hour_ahead_is_taken_or_refused(faults: list[Fault], text: str) -> None:
    found = probed(faults=faults)
    assert found.texts[words.FUTURE_EVENT] == text
    assert found.levels[words.FUTURE_EVENT] == "fact"


# --- conflicts ----------------------------------------------------------------------------

NAMED = "answers 409 (conflict), which names the contact's id"


@pytest.mark.parametrize("strict", [False, True])
def test_the_answer_to_a_taken_e_mail_is_reported(strict: bool) -> None:
    found = probed(strict_email=strict)
    made = "answers 200: another contact is made"
    live, archived = (NAMED, f"{NAMED} and calls it archived") if strict else (made, made)
    assert found.texts[words.LIVE_EMAIL].endswith(live)
    assert found.texts[words.ARCHIVED_EMAIL].endswith(archived)
    assert len(found.local.contacts) == (1 if strict else 3)
    assert found.is_clean


def test_the_external_id_of_an_archived_contact_answers_409_with_its_id() -> None:
    text = probed().texts[words.ARCHIVED_ID]
    assert text.endswith(f"{NAMED} and calls it archived")


def test_an_external_id_that_archiving_frees_makes_another_contact() -> None:
    def freed(local: Sandbox) -> Wire:
        def asked(request: Request) -> Request:
            if CREATE.encode() in (request.body or b"") and b"@" not in (request.body or b""):
                archived, *_, other = local.contacts
                local.merge(archived, other)  # a merged one holds no external id
            return request

        return Between(local, asked)

    found = probed(freed, events=False)
    assert found.texts[words.ARCHIVED_ID].endswith("answers 200: another contact is made")
    assert found.states == {"archived", "merged"}


def test_an_archived_contact_that_comes_back_is_archived_again() -> None:
    def revived(local: Sandbox) -> Wire:
        def answered(request: Request, answer: Answer) -> Answer:
            if answer.status != 409:
                return answer
            [contact] = local.contacts.values()
            path = f"/contacts/{contact.id}"
            local.handle(Request("POST", f"{path}/unarchive", b"{}"))
            return local.handle(Request("GET", path))

        return Between(local, answered=answered)

    found = probed(revived, events=False, strict_email=True)
    for key in (words.LIVE_EMAIL, words.ARCHIVED_EMAIL, words.ARCHIVED_ID):
        assert found.texts[key].endswith("answers 200: it is that contact, live")
    assert found.is_clean


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("A contact exists", "which names no id: A contact exists"),
        ("exists with id=0123456789abcdef01234567", "which names an id that is not the contact's"),
    ],
)
def test_a_409_that_does_not_name_the_contact_is_a_warning(message: str, text: str) -> None:
    errors = [{"code": "conflict", "message": message}]
    body = msgspec.json.encode({"type": "error.list", "errors": errors})

    def answered(_: Request, answer: Answer) -> Answer:
        return Answer(409, answer.headers, body) if answer.status == 409 else answer

    found = probed(lambda local: Between(local, answered=answered))
    assert found.texts[words.ARCHIVED_ID].endswith(text)
    assert found.levels[words.ARCHIVED_ID] == "warning"


# --- the rate limit -----------------------------------------------------------------------


@pytest.mark.parametrize(("counted", "before"), [("before", True), ("after", False)])
@pytest.mark.parametrize("offset_s", [0.0, 4.0])
def test_how_remaining_counts_is_found_out(counted: str, before: bool, offset_s: float) -> None:
    found = probed(remaining=counted, window_offset_s=offset_s, events=False)
    assert found.probe.counts_before is before
    assert found.texts[words.REMAINING].endswith(f"is the value {counted} its call is charged")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"headers": "absent"}, "no answer has all three"),
        ({"headers": "absurd"}, "no answer has all three"),
        ({"headers": "constant"}, "the value does not fall with each call"),
    ],
)
def test_headers_that_do_not_count_tell_nothing(more: dict[str, Any], why: str) -> None:
    found = probed(**more, events=False)
    assert found.probe.counts_before is None
    assert f"cannot be told: {why}" in found.texts[words.REMAINING]


@pytest.mark.parametrize("counted", ["before", "after"])
def test_beside_other_callers_it_cannot_be_told(counted: str) -> None:
    def busy(local: Sandbox) -> Wire:
        def asked(request: Request) -> Request:
            local.foreign_calls(2)
            return request

        return Between(local, asked)

    found = probed(busy, remaining=counted, events=False)
    assert found.probe.counts_before is None
    assert "others call with this access token" in found.texts[words.REMAINING]
    assert found.is_clean


@pytest.mark.parametrize(
    ("seen", "before"),
    [
        (rates(100, 99), True),
        (rates(100, 97), True),
        (rates(100, 100), None),
        (rates(100), None),
        (rates(99, 98), None),
        ([*rates(50, 49), *rates(99, 98, reset=20)], False),
        ([*rates(50, 48), *rates(99, 98, reset=20)], None),
        ([*rates(50, 49), *rates(99, 97, reset=20)], None),
        ([*rates(50, 49), *rates(98, 97, reset=20)], None),
        ([*rates(50), *rates(99, 98, reset=20)], None),
        ([], None),
    ],
)
def test_the_first_call_of_a_window_tells_how_remaining_is_counted(
    seen: list[RateHeaders], before: bool | None
) -> None:
    assert words.counts_before(seen) is before


# --- answers that are none ----------------------------------------------------------------


def test_a_page_of_a_proxy_is_said_to_be_none_of_intercom_s() -> None:
    page = Fault(kind="html", status=200, path="/events")
    found = probed(faults=[page])
    text = found.texts[words.SAME_EVENT]
    assert text == "no result: POST /events: it answered, but not as Intercom does: 200 text/html"
    assert found.levels[words.SAME_EVENT] == "error"
    assert words.ARCHIVED_ID in found.texts
    assert found.is_clean


def test_an_answer_about_another_contact_is_none_and_that_one_is_left_alone() -> None:
    def cached(local: Sandbox) -> Wire:
        theirs = local.add_contact("somebody")
        other = local.handle(Request("GET", f"/contacts/{theirs}"))

        def answered(request: Request, answer: Answer) -> Answer:
            return other if request.path == "/contacts" else answer

        return Between(local, answered=answered)

    found = probed(cached)
    assert "the answer is about another contact" in found.texts[words.PROBE]
    assert {c.external_id: c.state for c in found.local.contacts.values()} == {
        "somebody": "live",
        found.probe.calls.external_id: "archived",
    }


@pytest.mark.parametrize(
    ("status", "key", "remedy"),
    [(401, words.PROBE, "one that is valid"), (403, words.PROBE, "grant the access token")],
)
def test_a_refusal_is_said_with_its_remedy(status: int, key: str, remedy: str) -> None:
    found = probed(faults=[Fault(kind="status", status=status, path="/contacts")])
    assert f"Intercom answers {status} (" in found.texts[key]
    assert remedy in found.texts[key]
    assert found.is_clean


def test_a_missing_permission_costs_its_own_question_alone() -> None:
    found = probed(faults=[Fault(kind="status", status=403, path="/events?")])
    assert "GET /events: Intercom answers 403" in found.texts[words.SAME_EVENT]
    assert words.ARCHIVED_ID in found.texts
    assert found.is_clean


def test_a_429_is_waited_for_and_one_that_stays_ends_the_probe() -> None:
    found = probed(limit_per_minute=24)
    assert found.local.throttled
    assert found.texts[words.REMAINING].endswith("before its call is charged")
    assert found.is_clean
    found = probed(faults=[Fault(kind="status", status=429)])
    assert "still answers 429 after 3 pauses" in found.texts[words.PROBE]
    assert len(found.local.journal) == 4


# --- nothing stays ------------------------------------------------------------------------


def test_a_contact_of_an_unanswered_create_is_found_and_archived() -> None:
    lost = Fault(kind="reset", contains=CREATE, end_s=1.0)
    found = probed(faults=[lost])
    assert "it ended early: POST /contacts has no answer" in found.texts[words.PROBE]
    assert found.states == {"archived"}
    assert found.is_clean


def test_one_that_cannot_be_found_is_said_to_be_left_perhaps() -> None:
    found = probed(faults=[Fault(kind="reset", contains=CREATE, done=False)])
    assert f"external id {found.probe.calls.external_id} may be left" in found.texts[words.LEFT]
    assert not found.local.contacts


def test_a_contact_that_cannot_be_archived_is_named_by_id() -> None:
    found = probed(faults=[Fault(kind="status", status=500, path="/contacts/")], strict_email=True)
    [contact_id] = found.local.contacts
    assert f"the test contact with id {contact_id} " in found.texts[words.LEFT]
    assert (
        "cannot be archived: POST /contacts/{id}/archive: Intercom answers 500"
        in (found.texts[words.ARCHIVED_ID])
    )
    assert (found.levels[words.LEFT], found.states) == ("error", {"live"})


@pytest.mark.parametrize("stop_s", [0.01, 0.07, 0.2, 0.5, 1.1, 1.4, 2.0, 5.0])
def test_a_signal_at_any_time_leaves_nothing(
    stop_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = probed(stop_s=stop_s, remaining="after")
    assert found.is_clean
    assert words.REMAINING not in found.texts
    assert capsys.readouterr().err.endswith("all of them are archived\n")


@pytest.mark.parametrize(("stop_s", "now_s"), [(0.5, 1.0), (120.0, 125.0)])
def test_a_second_signal_ends_the_archiving_and_names_the_remaining_contacts(
    stop_s: float, now_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = Fault(kind="hang", path="/contacts/", done=False)
    found = probed(stop_s=stop_s, now_s=now_s, faults=[hangs], strict_email=True)
    [contact_id] = found.local.contacts
    first, second = capsys.readouterr().err.splitlines()
    assert first == "archiving the test contacts; Ctrl-C again leaves them"
    assert f"with id {contact_id} " in second


@in_virtual_time
async def test_a_probe_that_is_cancelled_archives_first(capsys: pytest.CaptureFixture[str]) -> None:
    loop = virtual.current()
    local = Sandbox(now=loop.wall_s, latency_s=0.05)
    with anyio.move_on_after(0.3):
        await probing.probe_one(InProcess(local), asyncio.Event(), asyncio.Event())
    assert ({contact.state for contact in local.contacts.values()}) == {"archived"}
    assert "all of them are archived" in capsys.readouterr().err


# --- consent, and what is kept ------------------------------------------------------------


def settings(folder: Path, *tokens: str) -> Settings:
    syncs: list[Mapping[str, Any]] = [
        {"name": f"sync-{number}", "intercom": {"access_token": token}}
        for number, token in enumerate(tokens)
    ]
    return from_table({"data_dir": str(folder / "data"), "sync": syncs})


def test_without_a_terminal_consent_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give --yes as well"):
        probing.has_consent(settings(tmp_path, "a"), probing.Consent())
    assert probing.has_consent(settings(tmp_path, "a"), probing.Consent(given=True))


def test_each_access_token_is_probed_once_as_its_first_sync(tmp_path: Path) -> None:
    firsts = probing.tokens_of(settings(tmp_path, "a", "b", "a").sync)
    assert [sync.name for sync in firsts] == ["sync-0", "sync-1"]


async def test_the_next_start_begins_with_the_kept_way_of_counting(tmp_path: Path) -> None:
    known = settings(tmp_path, "a", "b")
    first, other = (token_of(sync) for sync in known.sync)
    with pytest.raises(SpoolError, match="there is no spool"):
        await keep_counting(known, {first: True})
    assert not (tmp_path / "data").exists()
    assert await counting(known) == [False, False]
    await keep_counting(known, {first: True, other: False})
    assert await counting(known) == [True, False]
    await keep_counting(known, {first: False})
    assert await counting(known) == [False, False]


async def counting(known: Settings) -> list[bool]:
    """Return, by sync, whether its gate begins with ``Remaining`` counted before."""
    async with Engine(known, wire=lambda _: InProcess(Sandbox()), inline=True) as engine:
        with pytest.raises(DataDirInUse):
            await keep_counting(known, {token_of(known.sync[0]): True})
        gates = [stream.gate for stream in engine.streams.values()]
        return [gate is not None and gate.pace._window._counts_before for gate in gates]


async def test_a_workspace_that_is_known_to_be_full_gets_no_event(tmp_path: Path) -> None:
    known = settings(tmp_path, "a", "b", "a")
    assert not probing._has_no_name_free(known, known.sync[0])
    names = {f"name-{number}": 1 for number in range(120)}

    def enter(store: Store) -> None:
        for number, sync in enumerate(known.sync[:2], start=1):
            store.meta.set(token_key("workspace", token_of(sync)), str(number))

    async with Engine(known, deliver=False, inline=True) as engine:
        await engine.spool.do(enter)
        await engine.spool.do(lambda store: store.event_names.keep(1, names))
    assert [probing._has_no_name_free(known, sync) for sync in known.sync] == [True, False, True]
    async with Engine(known, deliver=False, inline=True) as engine:
        del names["name-0"]
        await engine.spool.do(lambda store: store.event_names.keep(1, {**names, EVENT_NAME: 1}))
    assert not probing._has_no_name_free(known, known.sync[0])
