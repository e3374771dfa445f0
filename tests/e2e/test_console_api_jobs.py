"""Jobs of the console's API, at a real port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support.console import Console, Said, bury, console, opened

LETTERS = "/syncs/e2e/dead-letters"
JOBS = "/syncs/e2e/jobs"


async def chosen(api: Console, conditions: str = "") -> dict[str, Any]:
    """Return what a list says of its letters, for a request."""
    page = await api.get(f"{LETTERS}?limit=1{conditions}")
    return {"up_to_id": page["up_to_id"], "expected": page["matching"]}


async def ended(api: Console, said: Said) -> Any:
    """Return the job of an answer, once it has ended."""
    assert said.status == 202, said
    path = said.headers["Location"].removeprefix("/api/v1")
    while (job := await api.get(path))["state"] == "waiting":
        await asyncio.sleep(0)
    return job


async def test_a_job_discards_what_was_seen_and_nothing_that_came_later(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        seen = await chosen(api)
        await bury(api.engine, 2, user="later-user")
        body = {"action": "discard", "filter": {"every": True}, "note": "too old", **seen}
        job = await ended(api, await api.ask("POST", JOBS, body))
        assert (job["expected"], job["done"], job["counts"]) == (3, 3, {"discarded": 3})
        assert (job["who"], job["note"], job["state"]) == ("loopback", "too old", "done")
        assert {one["user_key"] for one in await api.pages(LETTERS)} == {"later-user"}
        assert [one["id"] for one in await api.pages("/jobs?limit=1")] == [job["id"]]
        assert await api.audited() == [("job asked", "discard 3 of e2e, job 1: too old")]


async def test_another_number_of_letters_than_expected_is_a_conflict(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        seen = await chosen(api)
        body = {"action": "discard", "filter": {"every": True}, **seen, "expected": 2}
        said = await api.ask("POST", JOBS, body)
        assert (said.status, said.json["count"]) == (409, 3)
        assert said.json["detail"].endswith("the filter means 3 and not 2, as was expected")
        body = {"action": "discard", "filter": {"every": True}, **seen, "up_to_id": 0}
        assert (await api.ask("POST", JOBS, body)).json["count"] == 0
        assert (await chosen(api))["expected"] == 3
        assert await api.audited() == []


async def test_an_empty_filter_selects_nothing(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        seen = await chosen(api)
        said = await api.ask("POST", JOBS, {"action": "discard", "filter": {}, **seen})
        assert (said.status, said.json["count"]) == (409, 0)
        assert said.json["detail"].endswith("without a condition it means none, `every` all")
        body = {"action": "discard", "filter": {}, **seen, "expected": 0}
        job = await ended(api, await api.ask("POST", JOBS, body))
        assert job["done"] == 0
        assert await api.audited() == [("job asked", f"discard 0 of e2e, job {job['id']}")]
        assert (await chosen(api))["expected"] == 3


async def test_a_filter_lists_and_acts_alike(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        await bury(api.engine, 2, user="other-user")
        letters = await api.pages(LETTERS)
        for filter_, query in (
            ({"user": "other-user"}, "&user=other-user"),
            ({"ids": [letters[0]["id"]]}, f"&ids={letters[0]['id']}"),
            ({"reason": "too_old", "since_ms": 1}, "&reason=too_old&since_ms=1"),
        ):
            seen = await chosen(api, query)
            body = {"action": "discard", "filter": filter_, **seen}
            job = await ended(api, await api.ask("POST", JOBS, body))
            assert job["done"] == seen["expected"] > 0
        assert await api.pages(LETTERS) == []


async def test_a_group_is_listed_and_acted_on_by_its_own_names(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3, event_type="Often")
        await bury(api.engine, 2, user="other-user", event_type="Rarely")
        names = ("reason", "status", "code", "event_type")
        (often, _) = await api.pages(f"{LETTERS}/groups")
        group = {name: often[name] for name in names}
        query = "".join(f"&{name}={value}" for name, value in group.items())
        seen = await chosen(api, query)
        assert seen["expected"] == often["count"] == 3
        listed = await api.pages(f"{LETTERS}?limit=2{query}")
        assert {one["event_type"] for one in listed} == {"Often"}
        body = {"action": "discard", "filter": group, **seen}
        assert (await ended(api, await api.ask("POST", JOBS, body)))["done"] == 3
        (rest,) = await api.pages(f"{LETTERS}/groups")
        assert (rest["event_type"], rest["count"]) == ("Rarely", 2)


async def test_a_request_that_comes_again_begins_no_other_job(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with console(tmp_path, local) as api:
        await bury(api.engine, 2)
        body = {"action": "discard", "filter": {"every": True}, **await chosen(api)}
        first = await ended(api, await api.ask("POST", JOBS, body, Idempotency_Key="k"))
        again = await api.ask("POST", JOBS, body, Idempotency_Key="k")  # none is left by now
        assert (again.status, again.json["id"]) == (202, first["id"])
        other = {**body, "note": "other"}
        said = await api.ask("POST", JOBS, other, Idempotency_Key="k")
        assert (said.status, said.pointers) == (422, ["/Idempotency-Key"])
        assert (await api.ask("POST", JOBS, body, Idempotency_Key="l")).status == 409
        assert len(await api.pages("/jobs")) == 1
    async with opened(tmp_path / "settings.toml", local) as api:  # after a restart
        again = await api.ask("POST", JOBS, body, Idempotency_Key="k")
        assert (again.status, again.json["id"]) == (202, first["id"])


async def test_requests_with_one_key_at_the_same_time_begin_one_job(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 2)
        body = {"action": "replay", "filter": {"every": True}, **await chosen(api)}
        asked = [api.ask("POST", JOBS, body, Idempotency_Key="k") for _ in range(8)]
        assert {said.json.get("id") for said in await asyncio.gather(*asked)} == {1}


async def test_a_job_that_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 1)
        body = {"action": "discard", "filter": {"every": True}, **await chosen(api)}
        job = await ended(api, await api.ask("POST", JOBS, body))
        assert (await api.ask("DELETE", f"/jobs/{job['id']}")).status == 409
        assert (await api.ask("DELETE", "/jobs/77")).status == 404


async def test_a_replay_of_a_disabled_sync_is_a_conflict(tmp_path: Path) -> None:
    async with console(tmp_path, enabled=False) as api:
        body = {"action": "replay", "filter": {}, "up_to_id": 0, "expected": 0}
        said = await api.ask("POST", JOBS, body)
        assert said.status == 409
        assert "enable it" in said.json["detail"]


async def test_the_spool_is_compacted(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("POST", "/spool/compact")
        assert (said.status, said.json["after_bytes"] > 0) == (200, True)
        assert [action for action, _ in await api.audited()] == ["spool compacted"]


GOOD = {"action": "discard", "filter": {"every": True}, "up_to_id": 0, "expected": 0}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/action"),
        ([], ""),
        ({**GOOD, "action": "expire"}, "/action"),
        ({**GOOD, "filter": None}, "/filter"),
        ({**GOOD, "filter": {"ids": ["1"]}}, "/filter/ids/0"),
        ({**GOOD, "filter": {"ids": [2**63]}}, "/filter/ids/0"),
        ({**GOOD, "filter": {"ids": [1] * 1_001}}, "/filter/ids"),
        ({**GOOD, "filter": {"reason": "a\u0000"}}, "/filter/reason"),
        ({**GOOD, "filter": {"all": True}}, "/filter/all"),
        ({**GOOD, "up_to_id": -1}, "/up_to_id"),
        ({**GOOD, "expected": 10**30}, "/expected"),
        ({**GOOD, "expected": 1.5}, "/expected"),
        ({**GOOD, "note": "x" * 501}, "/note"),
        ({**GOOD, "until": 1}, "/until"),
    ],
)
async def test_a_wrong_request_is_pointed_at(tmp_path: Path, body: Any, pointer: str) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("POST", JOBS, data=json.dumps(body).encode())
        assert (said.status, said.pointers) == (422, [pointer]), said


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"filter": ' + b"[" * 100_000, {}, 422),
        (b'{"note": "\\ud800"}', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"{}", {"Sec_Fetch_Site": "cross-site"}, 403),
        (b" " * 1_000_001, {}, 413),
    ],
)
async def test_a_body_that_is_none_is_refused(
    tmp_path: Path, data: bytes, headers: dict[str, str], status: int
) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("POST", JOBS, data=data, **headers)
        assert (said.status, said.headers["Content-Type"]) == (status, "application/problem+json")
        assert (await api.ask("POST", f"{JOBS}?x=1", {})).status == 400
        assert (await api.ask("PUT", JOBS, {})).status == 405


async def test_a_filter_that_names_many_letters_is_shown_by_its_ends(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 1)
        letter = (await chosen(api))["up_to_id"]
        ids = [letter, *(10**17 + n for n in range(999))]
        body = {"action": "discard", "filter": {"ids": ids}, "up_to_id": letter, "expected": 1}
        job = await ended(api, await api.ask("POST", JOBS, body))
        assert (job["state"], job["done"]) == ("done", 1)
        for shown in (job, (await api.get("/jobs"))["items"][0]):
            assert f'"ids":[{letter},' in shown["filter"]
            assert len(shown["filter"]) < 1_100
