"""The refusals of the admin port: one table, one form."""

from __future__ import annotations

import json

import pytest

from amplitude_intercom.engine.console.problems import (
    MAX_ERRORS,
    STATUSES,
    FieldError,
    Problem,
    ProblemType,
    of_status,
)


@pytest.mark.parametrize("kind", ProblemType)
def test_every_type_has_a_status_a_title_and_a_remedy(kind: ProblemType) -> None:
    said = json.loads(Problem(kind).body("/api/v1/settings"))
    assert said == {
        "type": f"/help/problems/{kind}",
        "title": kind.means,
        "status": STATUSES[kind],
        "detail": kind.means,
        "remedy": kind.remedy,
        "instance": "/api/v1/settings",
        "errors": [],
    }
    assert all((kind.means, kind.remedy))


def test_the_statuses_of_the_api_are_those_that_are_described() -> None:
    described = {400, 401, 403, 404, 409, 412, 413, 415, 422, 428, 429, 503}
    of_the_server = {405, 408, 500}
    assert set(STATUSES.values()) == described | of_the_server


def test_no_text_of_a_problem_controls_a_terminal_or_is_without_bounds() -> None:
    hostile = "\x1b[31m\ud800\n" + "x" * 1_000_000
    errors = [FieldError(hostile, hostile)] * 3
    body = Problem(ProblemType.REFUSED_VALUE, hostile, errors=errors, more={"etag": hostile}).body(
        hostile
    )
    assert len(body) < 20_000
    texts = [value for value in json.loads(body).values() if isinstance(value, str)]
    texts += [value for error in json.loads(body)["errors"] for value in error.values()]
    assert all(text.isprintable() for text in texts)


def test_more_errors_than_are_listed_are_counted() -> None:
    errors = [FieldError(f"/{n}", "wrong") for n in range(MAX_ERRORS + 5)]
    listed = json.loads(Problem(ProblemType.REFUSED_VALUE, errors=errors).body())["errors"]
    assert len(listed) == MAX_ERRORS + 1
    assert listed[-1] == {"pointer": "", "detail": "5 more"}


@pytest.mark.parametrize(("status", "becomes"), [(404, 404), (405, 405), (414, 400), (502, 500)])
def test_an_answer_of_the_server_itself_becomes_one_of_the_types(status: int, becomes: int) -> None:
    assert of_status(status, "said").status == becomes
