"""The sandbox's rules that no recording shows, and its two faces."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import msgspec
import pytest

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import (
    Answer,
    Request,
    Wire,
    create_contact,
    get_contact,
    list_events,
    me,
    merged_into,
    named_contact,
    parse_error,
    parse_events,
    parse_rate,
    send_event,
    unarchive_contact,
    update_contact,
)
from amplitude_intercom.transports.intercom_client import IntercomClient
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve

NOW_S = 1_700_000_000  # begins a window


class Clock:
    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def event(name: str = "signed-up", created_at: object = NOW_S, **fields: Any) -> Request:
    identity = {} if fields.keys() & {"id", "email", "user_id"} else {"user_id": "u-1"}
    body = {"event_name": name, "created_at": created_at, **identity, **fields}
    return send_event(json.dumps(body).encode())


def create(**fields: Any) -> Request:
    return create_contact(json.dumps(fields).encode())


def update(contact_id: str, **fields: Any) -> Request:
    return update_contact(contact_id, json.dumps(fields).encode())


def post(path: str, body: object) -> Request:
    return Request("POST", path, json.dumps(body).encode())


def body_of(answer: Answer) -> Any:
    return json.loads(answer.body)


def refusal(answer: Answer) -> tuple[int, str, str]:
    error = parse_error(answer)
    return answer.status, error.code, error.message


def search(sandbox: Sandbox, query: object, **more: object) -> Any:
    return body_of(sandbox.handle(post("/contacts/search", {"query": query, **more})))


def is_(field: str, value: object, operator: str = "=") -> dict[str, object]:
    return {"field": field, "operator": operator, "value": value}


# events


def test_an_event_of_an_unknown_user_is_404_and_creates_nobody() -> None:
    sandbox = Sandbox()
    assert refusal(sandbox.handle(event())) == (404, "not_found", "User Not Found")
    assert not sandbox.contacts
    assert not sandbox.events


def test_an_accepted_event_has_no_body() -> None:
    sandbox = Sandbox()
    contact_id = sandbox.add_contact("u-1")
    answer = sandbox.handle(event(metadata={"plan": "pro"}))
    assert (answer.status, answer.body) == (202, b"")
    assert [(e.contact_id, e.name, e.metadata) for e in sandbox.events] == [
        (contact_id, "signed-up", {"plan": "pro"})
    ]


def test_same_contact_name_and_second_is_a_duplicate_with_any_metadata() -> None:
    sandbox = Sandbox()
    contact_id = sandbox.add_contact("u-1")
    again = [event(), event("Signed-Up", metadata={"n": 1}), event(id=contact_id)]
    assert {sandbox.handle(each).status for each in again} == {202}
    assert len(sandbox.events) == 1
    assert [entry.outcome for entry in sandbox.journal] == ["stored", "duplicate", "duplicate"]


def test_another_second_is_another_event() -> None:
    sandbox = Sandbox()
    sandbox.add_contact("u-1")
    sandbox.handle(event())
    sandbox.handle(event(created_at=NOW_S + 1))
    assert len(sandbox.events) == 2


def test_id_goes_before_user_id_and_user_id_before_email() -> None:
    sandbox = Sandbox()
    one, two = sandbox.add_contact("u-1"), sandbox.add_contact("u-2", "two@example.com")
    sandbox.handle(event("a", id=one, user_id="u-2", email="two@example.com"))
    sandbox.handle(event("b", user_id="u-1", email="two@example.com"))
    sandbox.handle(event("c", email="Two@example.com"))
    assert [e.contact_id for e in sandbox.events] == [one, one, two]


def test_a_lead_s_event_needs_its_id() -> None:
    sandbox = Sandbox()
    lead = body_of(sandbox.handle(create(role="lead", email="lead@example.com")))
    assert sandbox.handle(event(user_id=lead["external_id"])).status == 404
    assert sandbox.handle(event(email="lead@example.com")).status == 404
    assert sandbox.handle(event(id=lead["id"])).status == 202


def test_an_e_mail_that_several_users_share_is_a_conflict() -> None:
    sandbox = Sandbox()
    for user in ("u-1", "u-2"):
        sandbox.add_contact(user, "both@example.com")
    status, code, message = refusal(sandbox.handle(event(email="both@example.com")))
    assert (status, code) == (400, "conflict")
    assert message.startswith("Multiple existing users match this email address both@example.com")


def test_the_121st_event_name_is_refused_until_one_is_archived() -> None:
    sandbox = Sandbox()
    sandbox.add_contact("u-1")
    names = [f"name-{n}" for n in range(121)]
    answers = [sandbox.handle(event(name)) for name in names]
    assert {answer.status for answer in answers[:120]} == {202}
    text = "Cannot have more than 120 active event names"
    assert refusal(answers[120]) == (422, "422", text)
    assert sandbox.handle(event("NAME-0", created_at=NOW_S + 1)).status == 202
    sandbox.event_names.discard("name-0")
    assert sandbox.handle(event("name-120")).status == 202


def test_surplus_metadata_keys_are_cut_in_the_order_sent() -> None:
    sandbox = Sandbox(metadata_keys_kept=10)
    sandbox.add_contact("u-1")
    sent = {f"k{n}": n for n in range(25, 0, -1)}
    assert sandbox.handle(event(metadata=sent)).status == 202
    assert list(sandbox.events[0].metadata) == list(sent)[:10]


@pytest.mark.parametrize(
    "metadata",
    [
        {"list": [1]},
        {"empty": {}},
        {"nested": {"a": {"b": 1}}},
        {"money": {"amount": 19.99, "currency": "eur"}},
        {"money": {"amount": -1, "currency": "eur"}},
        {"link": {"url": 5, "value": "x"}},
        {"long": "x" * 256},
        {"a.b": 1},
        {"$price": 1},
        ["a"],
    ],
)
def test_metadata_that_intercom_cannot_hold_is_refused(metadata: object) -> None:
    sandbox = Sandbox()
    sandbox.add_contact("u-1")
    answer = sandbox.handle(event(metadata=metadata))
    assert refusal(answer) == (400, "parameter_invalid", "Invalid metadata")
    assert not sandbox.events


def test_rich_links_and_amounts_are_the_only_nested_values() -> None:
    sandbox = Sandbox()
    sandbox.add_contact("u-1")
    metadata = {
        "price": {"amount": 1999, "currency": "eur"},
        "order": {"url": "https://example.com/1", "value": "1"},
        "text": "x" * 255,
        "share": 0.5,
    }
    assert sandbox.handle(event(metadata=metadata)).status == 202
    assert sandbox.events[0].metadata == metadata


@pytest.mark.parametrize(
    "request_",
    [
        send_event(b""),
        send_event(b"{"),
        send_event(b"[]"),
        send_event(b'{"event_name":"x","user_id":"u-1"}'),
        event(created_at=NOW_S * 1000),
        event(created_at=float(NOW_S) + 0.5),
        event(created_at="2023-11-14"),
        event(name=""),
        send_event(b'{"event_name":"x","created_at":1700000000}'),
    ],
)
def test_a_malformed_event_is_400(request_: Request) -> None:
    sandbox = Sandbox()
    sandbox.add_contact("u-1")
    assert sandbox.handle(request_).status == 400


def test_events_of_the_last_90_days_can_be_read_back(clock: Clock) -> None:
    sandbox = Sandbox(now=clock)
    sandbox.add_contact("u-1")
    for age_days in (0, 1, 91):
        sandbox.handle(event("Ordered", created_at=NOW_S - age_days * 86_400))
    listed = body_of(sandbox.handle(Request("GET", "/events?type=user&user_id=u-1")))
    assert [each["created_at"] for each in listed["events"]] == [NOW_S, NOW_S - 86_400]
    path = "/events?type=user&user_id=u-1&summary=true"
    [row] = body_of(sandbox.handle(Request("GET", path)))["events"]
    assert (row["name"], row["count"], row["last"]) == (
        "Ordered",
        2,
        "2023-11-14T22:13:20.000+00:00",
    )


# contacts


def test_whether_a_duplicate_is_kept_and_how_far_the_list_lags_are_settings(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, keeps_duplicates=True, event_lag_s=5.0)
    sandbox.add_contact(external_id="u-1")
    for _ in range(2):
        sandbox.handle(event())
    for now_s, listed in ((NOW_S + 4, 0), (NOW_S + 5, 2)):
        clock.now_s = now_s
        assert len(parse_events(sandbox.handle(list_events("u-1")))) == listed


def test_creating_twice_names_the_live_contact() -> None:
    sandbox = Sandbox()
    first = body_of(sandbox.handle(create(external_id="u-1")))
    answer = sandbox.handle(create(external_id="u-1"))
    text = f"A contact matching those details already exists with id={first['id']}"
    assert refusal(answer) == (409, "conflict", text)
    assert named_contact(text) == first["id"]


def test_creating_by_e_mail_alone_meets_a_user_with_that_e_mail() -> None:
    sandbox = Sandbox()
    contact_id = sandbox.add_contact("u-1", "mira@example.com")
    answer = sandbox.handle(create(email="MIRA@example.com"))
    assert answer.status == 409
    assert named_contact(parse_error(answer).message) == contact_id


@pytest.mark.parametrize(("strict", "status"), [(False, 200), (True, 409)])
def test_whether_a_new_external_id_may_share_an_e_mail_is_a_setting(
    strict: bool, status: int
) -> None:
    sandbox = Sandbox(strict_email=strict)
    sandbox.add_contact("u-1", "mira@example.com")
    answer = sandbox.handle(create(external_id="u-2", email="mira@example.com"))
    assert answer.status == status


def test_an_update_cannot_take_another_live_user_s_external_id() -> None:
    sandbox = Sandbox()
    one, two = sandbox.add_contact("u-1"), sandbox.add_contact("u-2")
    answer = sandbox.handle(update(two, external_id="u-1"))
    assert answer.status == 409
    assert named_contact(parse_error(answer).message) == one
    assert sandbox.contacts[two].external_id == "u-2"


def test_a_create_needs_something_to_know_the_contact_by() -> None:
    assert Sandbox().handle(create(name="Mira")).status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"signed_up_at": "2023-11-14"},
        {"unsubscribed_from_emails": "yes"},
        {"name": 5},
        {"role": "admin"},
        {"email_verified": True},
        {"owner_id": "99"},
        {"custom_attributes": ["plan"]},
    ],
)
def test_a_standard_field_of_a_wrong_kind_is_refused(fields: dict[str, Any]) -> None:
    sandbox = Sandbox()
    answer = sandbox.handle(create(external_id="u-1", **fields))
    assert refusal(answer)[:2] == (400, "parameter_invalid")
    assert not sandbox.contacts


def test_a_merged_contact_is_410_with_a_link_over_several_hops() -> None:
    sandbox = Sandbox()
    first, second, last = (sandbox.add_contact(f"u-{n}") for n in range(3))
    sandbox.merge(first, second)
    sandbox.merge(second, last)
    requests = [
        get_contact(first),
        update(first, name="x"),
        Request("GET", "/contacts/find_by_external_id/u-0"),
    ]
    for request in requests:
        answer = sandbox.handle(request)
        assert (answer.status, parse_error(answer).code) == (410, "contact_merged")
        assert merged_into(answer) == last
    status, code, message = refusal(sandbox.handle(unarchive_contact(first)))
    assert (status, code) == (400, "bad_request")
    assert message == "User has been merged and is not restorable."


def test_only_a_lead_that_is_a_duplicate_can_be_merged_and_only_into_a_user() -> None:
    sandbox = Sandbox()
    lead = sandbox.add_contact(role="lead", email="a@example.com")
    user, other = sandbox.add_contact("u-1", "a@example.com"), sandbox.add_contact("u-2")
    for source, into in ((user, lead), (user, other), (lead, other)):
        answer = sandbox.handle(post("/contacts/merge", {"from": source, "into": into}))
        assert refusal(answer)[:2] == (400, "invalid_merge")
    assert sandbox.handle(post("/contacts/merge", {"from": lead, "into": user})).status == 200
    assert sandbox.handle(get_contact(lead)).status == 410


def test_finding_by_external_id_finds_users_only() -> None:
    sandbox = Sandbox()
    contact_id = sandbox.add_contact("a/b c")
    lead = body_of(sandbox.handle(create(role="lead")))
    found = sandbox.handle(Request("GET", "/contacts/find_by_external_id/a%2Fb%20c"))
    assert body_of(found)["id"] == contact_id
    path = f"/contacts/find_by_external_id/{lead['external_id']}"
    assert sandbox.handle(Request("GET", path)).status == 404


def test_events_and_updates_do_not_reach_an_archived_contact() -> None:
    sandbox = Sandbox()
    contact_id = sandbox.add_contact("u-1")
    sandbox.handle(post(f"/contacts/{contact_id}/archive", {}))
    answers = [sandbox.handle(each) for each in (event(), event(id=contact_id))]
    answers.append(sandbox.handle(update(contact_id, name="x")))
    assert {answer.status for answer in answers} == {404}


# search


def test_search_lags_where_the_store_does_not(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, search_lag_s=60)
    contact_id = body_of(sandbox.handle(create(external_id="u-1")))["id"]
    assert sandbox.handle(get_contact(contact_id)).status == 200
    assert search(sandbox, is_("external_id", "u-1"))["total_count"] == 0
    clock.now_s += 60
    sandbox.handle(update(contact_id, external_id="u-2"))
    assert search(sandbox, is_("external_id", "u-1"))["total_count"] == 1
    clock.now_s += 60
    assert search(sandbox, is_("external_id", "u-1"))["total_count"] == 0


def test_filters_join_in_two_levels() -> None:
    sandbox = Sandbox(attributes={"plan": "string"})
    for n, plan in enumerate(("pro", "free", "pro", "trial")):
        sandbox.add_contact(f"u-{n}", custom_attributes={"plan": plan})
    pro = is_("custom_attributes.plan", "pro")
    early = is_("external_id", ["u-0", "u-1"], "IN")
    late = {"operator": "OR", "value": [is_("external_id", "u-2"), is_("external_id", "u-3")]}
    cases = [
        (pro, {"u-0", "u-2"}),
        (is_("custom_attributes.plan", "pro", "!="), {"u-1", "u-3"}),
        ({"operator": "AND", "value": [pro, early]}, {"u-0"}),
        ({"operator": "OR", "value": [pro, early]}, {"u-0", "u-1", "u-2"}),
        ({"operator": "AND", "value": [pro, late]}, {"u-2"}),
    ]
    for query, expected in cases:
        assert {each["external_id"] for each in search(sandbox, query)["data"]} == expected


@pytest.mark.parametrize(
    "query",
    [
        None,
        {},
        is_("name", "x", "=="),
        is_("name", "x", "IN"),
        is_("name", ["x"]),
        {"operator": "AND", "value": []},
        {"operator": "AND", "value": [is_("name", "x")] * 16},
        {"operator": "AND", "value": [{"operator": "OR", "value": [{"operator": "AND"}]}]},
    ],
)
def test_a_query_that_is_none_is_refused(query: object) -> None:
    answer = Sandbox().handle(post("/contacts/search", {"query": query}))
    assert refusal(answer)[:2] == (400, "parameter_invalid")


def test_pages_follow_the_cursor_to_the_end() -> None:
    sandbox = Sandbox()
    for n in range(5):
        sandbox.add_contact(f"u-{n}")
    seen: list[str] = []
    pagination: dict[str, object] | None = {"per_page": 2}
    sort = {"field": "external_id", "order": "descending"}
    while pagination:
        page = search(sandbox, is_("role", "user"), pagination=pagination, sort=sort)
        seen += [each["external_id"] for each in page["data"]]
        pagination = page["pages"].get("next")
    assert seen == ["u-4", "u-3", "u-2", "u-1", "u-0"]


def test_an_unknown_sort_order_is_refused() -> None:
    asked = {"query": is_("name", "x"), "sort": {"field": "name", "order": "desc"}}
    answer = Sandbox().handle(post("/contacts/search", asked))
    assert refusal(answer)[:2] == (400, "invalid_sort_order")


# custom attributes


def test_one_unknown_custom_attribute_fails_the_whole_write() -> None:
    sandbox = Sandbox(attributes={"plan": "string"})
    contact_id = sandbox.add_contact("u-1", name="Mira")
    sent = {"plan": "pro", "isOpenSource": True}
    answer = sandbox.handle(update(contact_id, name="New", custom_attributes=sent))
    text = "Custom attribute 'isOpenSource' does not exist"
    assert refusal(answer) == (400, "parameter_invalid", text)
    assert sandbox.contacts[contact_id].name == "Mira"
    assert sandbox.contacts[contact_id].custom_attributes == {}


@pytest.mark.parametrize(
    ("data_type", "value"),
    [
        ("string", 5),
        ("string", "x" * 256),
        ("string", ["x"]),
        ("string", {"x": 1}),
        ("integer", "5"),
        ("integer", True),
        ("float", "5.0"),
        ("boolean", 1),
        ("date", "2023-11-14"),
    ],
)
def test_a_custom_attribute_of_a_wrong_kind_is_refused_by_name(
    data_type: str, value: object
) -> None:
    sandbox = Sandbox(attributes={"x1": data_type})
    answer = sandbox.handle(create(external_id="u-1", custom_attributes={"x1": value}))
    assert refusal(answer)[:2] == (400, "parameter_invalid")
    assert "'x1'" in parse_error(answer).message


def test_attributes_can_be_open_to_all_names() -> None:
    sandbox = Sandbox(open_attributes=True)
    sent = {"anything": 1, "gone": None}
    answer = sandbox.handle(create(external_id="u-1", custom_attributes=sent))
    assert body_of(answer)["custom_attributes"] == sent
    nested = create(external_id="u-2", custom_attributes={"nested": {}})
    assert sandbox.handle(nested).status == 400


def test_an_attribute_can_be_created_and_then_written() -> None:
    sandbox = Sandbox()
    made = {"name": "plan", "model": "contact", "data_type": "string"}
    assert sandbox.handle(post("/data_attributes", made)).status == 200
    sent = create(external_id="u-1", custom_attributes={"plan": "pro"})
    assert sandbox.handle(sent).status == 200


@pytest.mark.parametrize(
    ("made", "text"),
    [
        ({"name": "a.b"}, "Your name for this attribute must only contain alphanumeric"),
        ({"name": "x", "data_type": "mithril"}, "Data Type isn't an option"),
        ({"name": "x", "model": "user"}, "The Data Attribute model field must be either"),
        ({"name": "x", "options": [{"value": "1"}]}, "Data Type isn't an option"),
        ({"name": "ring", "model": "contact"}, "You already have 'ring' in your people data."),
    ],
)
def test_an_attribute_is_refused_in_intercom_s_words(made: dict[str, Any], text: str) -> None:
    sandbox = Sandbox(attributes={"ring": "string"})
    sent = {"model": "contact", "data_type": "string", **made}
    answer = sandbox.handle(post("/data_attributes", sent))
    assert refusal(answer)[:2] == (400, "parameter_invalid")
    assert parse_error(answer).message.startswith(text)


# rate, token, version, unknown paths


def test_remaining_is_the_value_before_the_call_and_every_call_costs_one(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=30)
    answers = [sandbox.handle(each) for each in (me(), get_contact("nobody"), send_event(b"{"))]
    assert [parse_rate(answer.headers).remaining for answer in answers] == [5, 4, 3]
    assert {parse_rate(answer.headers).limit for answer in answers} == {5}
    assert {parse_rate(answer.headers).reset_at_s for answer in answers} == {NOW_S + 12}


def test_a_window_that_is_used_up_answers_429_until_the_next(clock: Clock) -> None:
    clock.now_s = NOW_S + 9.5
    sandbox = Sandbox(now=clock, limit_per_minute=500)
    answers = [sandbox.handle(me()) for _ in range(84)]
    assert [answer.status for answer in answers] == [200] * 83 + [429]
    text = "Exceeded rate limit of 83 in 10_seconds"
    assert refusal(answers[-1]) == (429, "rate_limit_exceeded", text)
    assert parse_rate(answers[-1].headers).remaining == 0
    assert "retry-after" not in answers[-1].headers
    assert sandbox.throttled == 1
    clock.now_s = NOW_S + 10
    assert sandbox.handle(me()).status == 200


def test_a_throttled_call_changes_nothing(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=6)
    sandbox.add_contact("u-1")
    sandbox.handle(me())
    assert sandbox.handle(event()).status == 429
    assert not sandbox.events


def test_windows_can_begin_elsewhere(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=6, window_offset_s=3)
    assert parse_rate(sandbox.handle(me()).headers).reset_at_s == NOW_S + 5
    assert sandbox.handle(me()).status == 429
    clock.now_s = NOW_S + 3
    assert sandbox.handle(me()).status == 200


def test_another_client_of_the_token_takes_from_the_same_window(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=60)
    sandbox.foreign_calls(8)
    answers = [sandbox.handle(me()) for _ in range(3)]
    assert [parse_rate(answer.headers).remaining for answer in answers] == [2, 1, 0]
    assert answers[-1].status == 429
    assert sandbox.calls == 3


def test_remaining_can_be_the_value_after_the_call(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=18, remaining="after")
    answers = [sandbox.handle(me()) for _ in range(4)]
    assert [parse_rate(answer.headers).remaining for answer in answers] == [2, 1, 0, 0]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]


def test_a_limit_that_changes_counts_the_calls_of_the_present_window(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, limit_per_minute=60)
    sandbox.foreign_calls(5)
    sandbox.change_limit(36)
    answers = [sandbox.handle(me()) for _ in range(2)]
    assert [parse_rate(answer.headers).limit for answer in answers] == [6, 6]
    assert [answer.status for answer in answers] == [200, 429]


def test_rate_headers_can_be_absent_or_stuck(clock: Clock) -> None:
    absent = Sandbox(now=clock, headers="absent")
    assert parse_rate(absent.handle(me()).headers).limit is None
    stuck = Sandbox(now=clock, headers="constant")
    first = parse_rate(stuck.handle(me()).headers)
    clock.now_s += 25
    assert parse_rate(stuck.handle(me()).headers) == first


def test_most_calls_in_ten_seconds_is_found_across_windows(clock: Clock) -> None:
    sandbox = Sandbox(now=clock)
    for at_s in (0, 6, 7, 8, 9, 12, 13, 15.9, 16, 30):
        clock.now_s = NOW_S + at_s
        sandbox.handle(me())
    assert sandbox.most_calls_in(10) == 7
    assert Sandbox().most_calls_in(10) == 0


def test_a_wrong_or_revoked_token_is_401_without_rate_headers() -> None:
    sandbox = Sandbox(access_token="right")
    for authorization in (None, "Bearer wrong", "right"):
        answer = sandbox.handle(me(), authorization)
        assert refusal(answer) == (401, "unauthorized", "Access Token Invalid")
        assert parse_rate(answer.headers).limit is None
    assert sandbox.handle(me(), "Bearer right").status == 200
    sandbox.revoke_token()
    assert refusal(sandbox.handle(me(), "Bearer right"))[:2] == (401, "token_revoked")
    sandbox.restore_token()
    assert sandbox.handle(me(), "Bearer right").status == 200


def test_an_unknown_version_is_refused_and_a_known_one_echoed() -> None:
    sandbox = Sandbox()
    assert refusal(sandbox.handle(me(), None, "9.9"))[:2] == (400, "intercom_version_invalid")
    assert sandbox.handle(me(), None, "2.16").headers["intercom-version"] == "2.16"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("PATCH", "/contacts"), ("POST", "/bulk/events"), ("PUT", "/events")],
)
def test_an_unknown_path_or_method_is_404(method: str, path: str) -> None:
    assert Sandbox().handle(Request(method, path, b"{}")).status == 404


def test_the_token_s_owner_names_the_region() -> None:
    assert body_of(Sandbox(region="EU").handle(me()))["app"]["region"] == "EU"


def test_request_ids_have_20_characters_and_stand_in_errors() -> None:
    sandbox = Sandbox(seed=7)
    ids = {sandbox.handle(me()).headers["x-request-id"] for _ in range(9)}
    assert {len(each) for each in ids} == {20}
    assert len(ids) == 9
    answer = sandbox.handle(get_contact("nobody"))
    assert body_of(answer)["request_id"] == answer.headers["x-request-id"]


def test_the_same_seed_gives_the_same_answers(clock: Clock) -> None:
    def answers(seed: int) -> list[Answer]:
        sandbox = Sandbox(now=clock, seed=seed, faults=[Fault("status", share=0.5)])
        return [sandbox.handle(create(role="lead")) for _ in range(20)]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_the_journal_has_the_exact_bytes_of_every_call(clock: Clock) -> None:
    sandbox = Sandbox(now=clock)
    contact_id = sandbox.add_contact("u-1")
    odd = b'{ "event_name":"x",  "created_at":1700000000,"user_id":"u-1" }'
    for request in (send_event(odd), send_event(odd), send_event(b"{")):
        sandbox.handle(request)
    assert [(e.at_s, e.body, e.status, e.outcome, e.contact_id) for e in sandbox.journal] == [
        (NOW_S, odd, 202, "stored", contact_id),
        (NOW_S, odd, 202, "duplicate", contact_id),
        (NOW_S, b"{", 400, "parameter_invalid", ""),
    ]


# faults


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "server_error"), (503, "service_unavailable"), (403, "api_plan_restricted")],
)
def test_a_status_fault_answers_in_intercom_s_envelope(status: int, code: str) -> None:
    sandbox = Sandbox(faults=[Fault("status", status)])
    answer = sandbox.handle(me())
    assert refusal(answer)[:2] == (status, code)
    assert parse_rate(answer.headers).limit == 1667


def test_an_html_fault_is_a_proxy_s_answer() -> None:
    sandbox = Sandbox(faults=[Fault("html", 502)])
    answer = sandbox.handle(create(external_id="u-1"))
    assert (answer.status, answer.headers["content-type"]) == (502, "text/html")
    assert answer.body.startswith(b"<html>")
    assert parse_rate(answer.headers).limit is None
    assert not sandbox.contacts


def test_a_fault_lasts_from_its_start_to_its_end(clock: Clock) -> None:
    sandbox = Sandbox(now=clock, faults=[Fault("status", 503, start_s=5, end_s=10)])
    statuses = []
    for at_s in (0, 5, 9.9, 10):
        clock.now_s = NOW_S + at_s
        statuses.append(sandbox.handle(me()).status)
    assert statuses == [200, 503, 503, 200]


def test_a_poison_fault_hits_only_bodies_that_contain_its_text() -> None:
    sandbox = Sandbox(faults=[Fault("status", 500, path="/events", contains="poison")])
    sandbox.add_contact("u-1")
    assert sandbox.handle(event("poison")).status == 500
    assert sandbox.handle(event("fine")).status == 202
    assert sandbox.handle(create(external_id="poison")).status == 200


def test_a_share_of_calls_is_hit() -> None:
    sandbox = Sandbox(faults=[Fault("status", 500, share=0.2)])
    hit = sum(sandbox.handle(me()).status == 500 for _ in range(1000))
    assert 150 < hit < 250


@pytest.mark.parametrize(
    ("kind", "cause"), [("reset", "reset"), ("half", "incomplete"), ("hang", "timeout")]
)
@pytest.mark.parametrize(("done", "stored"), [(True, 1), (False, 0)])
def test_a_lost_answer_leaves_the_call_done_or_not(
    kind: Any, cause: str, done: bool, stored: int
) -> None:
    sandbox = Sandbox(faults=[Fault(kind, done=done, end_s=1e9)])
    sandbox.add_contact("u-1")
    with pytest.raises(NoAnswer) as caught:
        sandbox.handle(event())
    assert caught.value.cause == cause
    assert len(sandbox.events) == stored
    [entry] = sandbox.journal
    assert (entry.status, entry.outcome) == (0, "stored" if done else kind)


def test_a_refused_connection_does_not_count_as_a_call() -> None:
    sandbox = Sandbox(faults=[Fault("refuse")])
    with pytest.raises(NoAnswer, match="nothing listens"):
        sandbox.handle(me())
    assert [entry.outcome for entry in sandbox.journal] == ["refuse"]
    assert sandbox.calls == sandbox.most_calls_in(10) == 0


# the two faces


async def test_in_process_sends_the_sandbox_s_token() -> None:
    sandbox = Sandbox(access_token="right")
    wire: Wire = InProcess(sandbox)
    assert (await wire.send(me())).status == 200
    assert (await InProcess(sandbox, access_token="wrong").send(me())).status == 401


async def test_in_process_a_late_answer_is_a_time_out_of_a_call_that_was_done() -> None:
    sandbox = Sandbox(latency_s=(5.0, 6.0))
    with pytest.raises(NoAnswer, match="no answer in time"):
        await InProcess(sandbox, timeout_s=0.01).send(create(external_id="u-1"))
    assert len(sandbox.contacts) == 1


async def test_in_process_an_answer_comes_after_its_latency() -> None:
    wire = InProcess(Sandbox(latency_s=0.001))
    assert (await wire.send(me())).status == 200


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("reset", "reset"), ("half", "incomplete"), ("hang", "timeout"), ("refuse", "refused")],
)
async def test_in_process_faults_are_no_answers(kind: Any, cause: str) -> None:
    wire = InProcess(Sandbox(faults=[Fault(kind)]), timeout_s=0.01)
    with pytest.raises(NoAnswer) as caught:
        await wire.send(me())
    assert caught.value.cause == cause


async def test_over_http_the_client_meets_the_same_state_machine() -> None:
    sandbox = Sandbox(access_token="right", latency_s=0.001)
    async with (
        serve(sandbox) as url,
        IntercomClient(url, "right", timeout_s=5, connections=4) as client,
    ):
        made = await client.send(create(external_id="u/1 é"))
        found = await client.send(Request("GET", "/contacts/find_by_external_id/u%2F1%20%C3%A9"))
        sent = await client.send(event(user_id="u/1 é"))
        listed = await client.send(Request("GET", "/contacts?per_page=150"))
    assert body_of(made)["id"] == body_of(found)["id"]
    assert (sent.status, sent.body) == (202, b"")
    assert body_of(listed)["pages"]["per_page"] == 150
    assert parse_rate(sent.headers).limit == 1667
    assert sent.headers["intercom-version"] == "2.14"
    assert [entry.path for entry in sandbox.journal][1] == (
        "/contacts/find_by_external_id/u%2F1%20%C3%A9"
    )


async def test_over_http_a_wrong_token_is_401() -> None:
    async with (
        serve(Sandbox(access_token="right")) as url,
        IntercomClient(url, "wrong", timeout_s=5, connections=1) as client,
    ):
        assert (await client.send(me())).status == 401


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("reset", "reset"), ("half", "incomplete"), ("hang", "timeout"), ("refuse", "reset")],
)
async def test_over_http_faults_break_the_connection(kind: Any, cause: str) -> None:
    sandbox = Sandbox(faults=[Fault(kind, path="/me")])
    async with (
        serve(sandbox) as url,
        IntercomClient(url, "any", timeout_s=0.3, connections=2) as client,
    ):
        with pytest.raises(NoAnswer) as caught:
            await client.send(me())
        assert caught.value.cause == cause
        assert (await client.send(create(external_id="u-1"))).status == 200


async def test_over_http_half_an_empty_answer_is_no_answer() -> None:
    sandbox = Sandbox(faults=[Fault("half", path="/events")])
    sandbox.add_contact("u-1")
    async with (
        serve(sandbox) as url,
        IntercomClient(url, "any", timeout_s=5, connections=2) as client,
    ):
        with pytest.raises(NoAnswer, match="cut off"):
            await client.send(event())
    assert len(sandbox.events) == 1


# --- behind the API's back -----------------------------------------------------------------


def test_a_contact_is_changed_behind_the_api_s_back_and_keeps_unnamed_fields() -> None:
    sandbox = Sandbox(open_attributes=True)
    contact_id = sandbox.add_contact("u-1", custom_attributes={"plan": "pro", "visits": 3})
    sandbox.change_contact(contact_id, external_id="u-2", custom_attributes={"visits": 4})
    contact = sandbox.contacts[contact_id]
    assert contact.custom_attributes == {"plan": "pro", "visits": 4}
    assert sandbox.handle(event(user_id="u-1")).status == 404
    assert sandbox.handle(event(user_id="u-2")).status == 202
    assert [entry.path for entry in sandbox.journal] == ["/events", "/events"]


def test_an_archived_contact_can_be_brought_back_and_a_deleted_one_cannot() -> None:
    sandbox = Sandbox()
    one, two = sandbox.add_contact("u-1"), sandbox.add_contact("u-2")
    sandbox.archive(one)
    sandbox.delete(two)
    back = [sandbox.handle(post(f"/contacts/{each}/unarchive", {})).status for each in (one, two)]
    assert back == [200, 400]


def test_a_workspace_has_the_id_that_it_is_given() -> None:
    sandbox = Sandbox(workspace_id="another")
    contact = body_of(sandbox.handle(create(external_id="u-1")))
    named = body_of(sandbox.handle(me()))["app"]["id_code"]
    assert (named, contact["workspace_id"]) == ("another", "another")


# --- over HTTP ----------------------------------------------------------------------------


async def test_every_call_over_http_needs_a_token() -> None:
    local = Sandbox()
    local.add_contact(external_id="mira")
    body = msgspec.json.encode({"user_id": "mira", "event_name": "x", "created_at": 1})
    async with serve(local) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/events", data=body) as answer:
            assert answer.status == 401
            assert (await answer.json())["type"] == "error.list"
        token = {"Authorization": "Bearer any"}
        async with session.post(f"{url}/events", data=body, headers=token) as answer:
            assert answer.status == 202
            assert await answer.read() == b""
            assert "Content-Type" not in answer.headers
