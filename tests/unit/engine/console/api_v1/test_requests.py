"""Bodies, queries and versions of requests."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from yarl import URL

from amplitude_intercom.engine.console.api_v1.etags import etag, refuse_other
from amplitude_intercom.engine.console.api_v1.requests import id_of, query_of, refused
from amplitude_intercom.engine.console.problems import FieldError, Problem


class _Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[int] = []


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    inner: _Inner = _Inner()
    ids: list[int] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class _Raws(msgspec.Struct):
    raws: list[bytes]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    token: str


@pytest.mark.parametrize(
    ("kind", "given", "pointer"),
    [
        (_Asked, {"inner": {"ids": [1, "a"]}}, "/inner/ids/1"),
        (_Asked, {"inner": {"a/b~": 1}}, "/inner/a~1b~0"),
        (_Asked, {"limit": 201}, "/limit"),
        (_Asked, {"limit": 10**400}, "/limit"),
        (_Wanted, {}, "/token"),
        (_Wanted, {"token": "", "x": 1}, "/x"),
        (_Wanted, [], ""),
    ],
)
def test_a_refused_value_is_pointed_at(kind: Any, given: Any, pointer: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(given, kind)
    problem = refused(error.value)
    assert (problem.status, problem.errors[0].pointer) == (422, pointer)


def test_bytes_of_a_body_are_asked_for_as_what_json_has_for_them() -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(b'{"raws": [{}]}', type=_Raws)
    assert refused(error.value).errors == [
        FieldError("/raws/0", "Expected text in Base64, got `object`")
    ]


def test_a_list_of_a_query_is_given_parameter_by_parameter() -> None:
    asked = query_of(make_mocked_request("GET", "/?ids=1&ids=2&limit=7"), _Asked)
    assert (asked.ids, asked.limit) == ([1, 2], 7)
    assert query_of(make_mocked_request("GET", "/?ids=5"), _Asked).ids == [5]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=1&limit=2", "/limit"),
        ("limit=x", "/limit"),
        ("limit=", "/limit"),
        (f"limit={'9' * 5_000}", "/limit"),
        ("ids=a", "/ids/0"),
        ("curser=x", "/curser"),
    ],
)
def test_a_wrong_query_is_pointed_at(query: str, pointer: str) -> None:
    with pytest.raises(Problem) as refusal:
        query_of(make_mocked_request("GET", str(URL(f"/?{query}", encoded=True))), _Asked)
    assert (refusal.value.status, refusal.value.errors[0].pointer) == (422, pointer)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "٣", "9" * 19, "9" * 9_000, "..", "a/b"])
def test_a_part_of_a_path_that_is_no_number_is_the_number_of_nothing(text: str) -> None:
    request = make_mocked_request("GET", "/", match_info={"job": text})
    with pytest.raises(Problem) as refusal:
        id_of(request, "job")
    assert refusal.value.status == 404


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ([], 428),
        ([""], 428),
        (["*"], 428),
        ([" * "], 428),
        (["abc"], 400),
        (['"abc'], 400),
        (['"abc", '], 400),
        (['W/"abc"'], 412),
        (['"abcd"'], 412),
        (['"x"', '"y"'], 412),
    ],
)
def test_a_change_names_the_version_that_it_changes(given: list[str], status: int) -> None:
    headers = CIMultiDict([("If-Match", one) for one in given])
    with pytest.raises(Problem) as refusal:
        refuse_other(make_mocked_request("PUT", "/", headers=headers), "abc")
    assert refusal.value.status == status
    assert refusal.value.headers.get("ETag") == ('"abc"' if status == 412 else None)


@pytest.mark.parametrize("given", ['"abc"', '"x", "abc"', 'W/"abc","abc"'])
def test_a_change_of_the_present_version_goes_on(given: str) -> None:
    request = make_mocked_request("PUT", "/", headers={"If-Match": given})
    refuse_other(request, "abc")
    assert etag("abc") == '"abc"'
