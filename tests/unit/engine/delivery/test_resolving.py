"""What an answer about a contact means, and that no answers lead in a circle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.delivery.contacts.resolving import (
    Action,
    Resolution,
    Said,
    refused_field,
    resolve,
    say,
)
from amplitude_intercom.engine.delivery.contacts.upserting import MAX_CALLS
from amplitude_intercom.engine.delivery.create_or_find import CreateOrFind
from amplitude_intercom.engine.envelope import Identity
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.transports.intercom import Answer

BY_ID = Identity("external_id", "mira")
BY_EMAIL = Identity("email", "mira@example.com")
EMAIL = frozenset({"email"})


def way(identity: Identity = BY_ID, **more: Any) -> Resolution:
    return Resolution(identity=identity, **{"archived": "unarchive", **more})


def contact(contact_id: str = "5f", external_id: str | None = "mira", **more: Any) -> Answer:
    body = {"type": "contact", "id": contact_id, "external_id": external_id, **more}
    return Answer(200, {}, json.dumps(body).encode())


def found(*contacts: Answer) -> Answer:
    data = [json.loads(one.body) for one in contacts]
    return Answer(200, {}, json.dumps({"type": "list", "data": data}).encode())


def refusal(status: int, message: str = "", field: str | None = None) -> Answer:
    errors = [{"code": "some_code", "message": message, "field": field}]
    return Answer(status, {}, json.dumps({"type": "error.list", "errors": errors}).encode())


def merged(into: str) -> Answer:
    return Answer(410, {"link": f'</contacts/{into}>; rel="canonical"'}, refusal(410).body)


NAMED = refusal(409, "A contact matching those details already exists with id=6a")
ARCHIVED = refusal(409, "An archived contact matching those details already exists with id=6a")
SHARED = refusal(400, "Multiple existing users match this email address")
UNNAMED = refusal(409, "A contact matching those details already exists")


@pytest.mark.parametrize(
    ("start", "did", "answer", "sent", "step", "contact_id"),
    [
        (way(), Action.CREATE, contact(), set(), Action.DONE, "5f"),
        (way(), Action.CREATE, NAMED, set(), Action.PUT, "6a"),
        (way(), Action.CREATE, NAMED, EMAIL, Action.LOOK, "6a"),
        (way(), Action.CREATE, ARCHIVED, set(), Action.UNARCHIVE, "6a"),
        (way(), Action.CREATE, ARCHIVED, EMAIL, Action.CREATE_BARE, ""),
        (way(), Action.CREATE_BARE, ARCHIVED, set(), Action.UNARCHIVE, "6a"),
        (way(), Action.CREATE_BARE, contact(), set(), Action.PUT, "5f"),
        (way(), Action.CREATE, UNNAMED, EMAIL, Action.CREATE, ""),
        (way(), Action.CREATE, UNNAMED, set(), Action.CREATE, ""),
        (way(), Action.FIND, contact(), set(), Action.PUT, "5f"),
        (way(), Action.FIND, refusal(404), set(), Action.CREATE, ""),
        (way(), Action.FIND, contact(external_id="another"), set(), Action.CREATE, ""),
        (way(), Action.FIND, merged("7b"), set(), Action.LOOK, "7b"),
        (way(BY_EMAIL), Action.SEARCH, found(), set(), Action.CREATE, ""),
        (
            way(BY_EMAIL),
            Action.SEARCH,
            found(contact(email="Mira@Example.com")),
            set(),
            Action.PUT,
            "5f",
        ),
        (way(BY_EMAIL), Action.SEARCH, found(contact(email="x@x.io")), set(), Action.CREATE, ""),
        (way(contact_id="5f"), Action.PUT, contact(), set(), Action.DONE, "5f"),
        (
            way(contact_id="5f"),
            Action.PUT,
            contact(external_id="another"),
            set(),
            Action.CREATE,
            "",
        ),
        (way(contact_id="5f"), Action.PUT, contact(external_id=None), set(), Action.CREATE, ""),
        (way(contact_id="5f"), Action.PUT, refusal(404), set(), Action.CREATE, ""),
        (way(contact_id="5f"), Action.PUT, merged("7b"), set(), Action.LOOK, "7b"),
        (way(contact_id="7b", owner="heir"), Action.PUT, merged("8c"), set(), Action.LOOK, "8c"),
        (
            way(contact_id="7b", is_merge_target=True),
            Action.LOOK,
            contact("7b"),
            set(),
            Action.PUT,
            "7b",
        ),
        (
            way(contact_id="7b", is_merge_target=True),
            Action.LOOK,
            contact("7b", "heir"),
            set(),
            Action.JOIN,
            "7b",
        ),
        (
            way(contact_id="7b", is_merge_target=True),
            Action.LOOK,
            refusal(404),
            set(),
            Action.CREATE,
            "",
        ),
        (way(contact_id="5f"), Action.PUT, NAMED, EMAIL, Action.PUT, "5f"),
        (
            way(contact_id="6a", is_another=True),
            Action.LOOK,
            contact("6a"),
            EMAIL,
            Action.PUT,
            "6a",
        ),
        (
            way(contact_id="6a", is_another=True),
            Action.LOOK,
            contact("6a", None),
            EMAIL,
            Action.PUT,
            "6a",
        ),
        (
            way(contact_id="6a", is_another=True),
            Action.LOOK,
            contact("6a", "x"),
            EMAIL,
            Action.CREATE,
            "",
        ),
        (way(contact_id="6a"), Action.UNARCHIVE, contact("6a"), set(), Action.PUT, "6a"),
    ],
)
def test_each_answer_has_its_next_step(
    start: Resolution, did: Action, answer: Answer, sent: set[str], step: Action, contact_id: str
) -> None:
    after, following = resolve(start, did, answer, sent)
    assert (following, after.contact_id) == (step, contact_id)


@pytest.mark.parametrize(
    ("start", "did", "answer", "sent", "reason"),
    [
        (way(archived="dead_letter"), Action.CREATE, ARCHIVED, set(), DeadReason.CONTACT_ARCHIVED),
        (way(contact_id="6a"), Action.UNARCHIVE, refusal(400), set(), DeadReason.CONTACT_GONE),
        (way(contact_id="6a"), Action.UNARCHIVE, refusal(404), set(), DeadReason.CONTACT_GONE),
        (way(BY_EMAIL), Action.SEARCH, found(contact(), contact()), set(), "contact_ambiguous"),
        (
            way(created=frozenset([Action.CREATE])),
            Action.CREATE,
            UNNAMED,
            set(),
            "contact_conflict",
        ),
        (way(), Action.CREATE, SHARED, set(), DeadReason.CONTACT_AMBIGUOUS),
        (way(contact_id="5f"), Action.PUT, NAMED, {"name"}, DeadReason.CONTACT_CONFLICT),
        (way(contact_id="5f"), Action.PUT, refusal(422, "no"), {"name"}, DeadReason.REFUSED),
        (way(contact_id="5f"), Action.PUT, Answer(410, {}, b""), set(), DeadReason.CONTACT_GONE),
    ],
)
def test_final_answers_end_the_way(
    start: Resolution, did: Action, answer: Answer, sent: set[str], reason: str
) -> None:
    _, step = resolve(start, did, answer, sent)
    assert isinstance(step, Failure)
    assert step.reason == reason


def test_a_user_merged_into_a_deleted_contact_takes_nobody_else_s() -> None:
    after, _ = resolve(way(contact_id="5f"), Action.PUT, merged("7b"))
    after, step = resolve(after, Action.PUT, refusal(404))
    assert step is Action.CREATE
    after, step = resolve(after, Action.CREATE, NAMED, EMAIL)
    assert step is Action.LOOK
    after, step = resolve(after, Action.LOOK, contact("6a", "somebody"), EMAIL)
    assert (step, after.without) == (Action.CREATE, EMAIL)


def test_a_contact_without_a_name_that_the_user_s_was_merged_into_becomes_the_user_s() -> None:
    after, _ = resolve(way(contact_id="5f"), Action.PUT, merged("7b"))
    after, step = resolve(after, Action.LOOK, contact("7b", None))
    assert (step, after.adopts, after.owner) == (Action.PUT, True, "")


@pytest.mark.parametrize("did", [Action.PUT, Action.LOOK])
def test_a_contact_that_is_another_s_now_is_not_taken_though_the_index_has_it_still(
    did: Action,
) -> None:
    theirs = contact("5f", email="new@example.com")
    after, step = resolve(
        way(BY_EMAIL, contact_id="5f", is_another=did is Action.LOOK), did, theirs
    )
    assert (step, after.contact_id) == (Action.CREATE, "")
    after, step = resolve(after, Action.SEARCH, found(contact("5f", email="mira@example.com")))
    assert (step, after.contact_id) == (Action.CREATE, "")
    assert resolve(after, Action.CREATE, contact("6a", email="mira@example.com"))[1] is Action.DONE


def test_an_identifier_that_intercom_has_stripped_is_the_user_s() -> None:
    spaced = way(Identity("external_id", " mira "), contact_id="5f")
    assert resolve(spaced, Action.PUT, contact())[1] is Action.DONE


def test_an_email_of_somebody_else_is_left_out_and_said() -> None:
    start = way(contact_id="6a", is_another=True)
    after, _ = resolve(start, Action.LOOK, contact("6a", "somebody"), EMAIL)
    assert after.without == EMAIL
    assert [found.where for found in after.left_out] == ["email"]


def test_a_merged_user_goes_by_the_id_that_the_contact_has_now() -> None:
    after, _ = resolve(way(contact_id="5f"), Action.PUT, merged("7b"))
    after, step = resolve(after, Action.LOOK, contact("7b", "heir"))
    assert (step, after.owner) == (Action.JOIN, "heir")
    later = way(contact_id="7b", owner=after.owner)
    assert say(later, Action.PUT, contact("7b", "heir"), ()) is Said.OURS
    assert say(later, Action.PUT, contact("7b", "a third"), ()) is Said.ANOTHERS


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        (refusal(400, "Custom attribute 'plan' does not exist"), "custom_attributes.plan"),
        (refusal(422, "Value for attribute plan is invalid"), "custom_attributes.plan"),
        (refusal(422, "Something is wrong", "plan"), "custom_attributes.plan"),
        (refusal(422, "Something is wrong", "custom_attributes.plan"), "custom_attributes.plan"),
        (refusal(422, "Email is invalid"), "email"),
        (refusal(422, "the value of “plan” is too long"), "custom_attributes.plan"),
        (refusal(422, "the plan is too long"), ""),
        (refusal(422, "attribute plan.b is invalid"), ""),
        (refusal(422, "'plan' and 'email' do not go together"), ""),
        (refusal(404, "Custom attribute 'plan' does not exist"), ""),
        (refusal(400, "The owner specified is not a member of the workspace"), ""),
    ],
)
def test_a_field_is_left_out_only_where_a_refusal_names_it_exactly(
    answer: Answer, field: str
) -> None:
    assert refused_field(answer, ["email", "custom_attributes.plan"]) == field


ANSWERS = st.one_of(
    st.builds(
        contact,
        st.sampled_from(["5f", "6a", "7b"]),
        st.sampled_from(["mira", "another", None]),
        email=st.sampled_from(["mira@example.com", "x@x.io", None]),
    ),
    st.builds(merged, st.sampled_from(["5f", "6a", "7b"])),
    st.builds(
        refusal,
        st.sampled_from([400, 404, 409, 410, 422, 418]),
        st.sampled_from(
            [
                "A contact matching those details already exists with id=5f",
                "An archived contact matching those details already exists with id=6a",
                "A contact matching those details already exists",
                "Custom attribute 'plan' does not exist",
                "Email is invalid",
                "no",
            ]
        ),
    ),
)


@given(
    st.sampled_from([BY_ID, BY_EMAIL]),
    st.sampled_from(
        [
            Action.FIND,
            Action.SEARCH,
            Action.CREATE,
            Action.CREATE_EMPTY,
            Action.CREATE_BARE,
            Action.PUT,
        ]
    ),
    st.lists(ANSWERS, min_size=16, max_size=16),
)
def test_every_sequence_of_answers_has_an_end(
    identity: Identity, first: Action, answers: list[Answer]
) -> None:
    """And a contact is written, looked at or brought back only where it is known which."""
    on_way = way(identity, contact_id="5f" if first is Action.PUT else "")
    step: Action | Failure = first
    made = 0
    for answer in answers:
        if isinstance(step, Failure) or step is Action.DONE:
            break
        made += 1
        if step is Action.SEARCH and answer.status == 200:
            answer = found(answer)
        sent = {"email", "custom_attributes.plan"} - on_way.without - {identity.field}
        on_way, step = resolve(on_way, step, answer, set() if step is Action.CREATE_BARE else sent)
        if step in (Action.PUT, Action.LOOK, Action.UNARCHIVE):
            assert on_way.contact_id
    assert isinstance(step, Failure) or step is Action.DONE
    assert made <= MAX_CALLS
    if step is Action.DONE:
        assert on_way.contact_id


def finds_first_after(first: CreateOrFind, were_there: Iterable[bool]) -> bool:
    for was_there in were_there:
        first.note(was_there=was_there)
    return first.finds_first


def test_it_is_looked_first_where_most_were_there_and_created_first_where_most_are_new() -> None:
    first = CreateOrFind()
    assert not finds_first_after(first, [])
    assert finds_first_after(first, [True] * 40)
    assert not finds_first_after(first, [False] * 40)
    assert not finds_first_after(first, (n % 4 == 0 for n in range(100)))
