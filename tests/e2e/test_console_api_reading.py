"""The console's API, for reading, at a real port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.problems import Problem
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import bury, console


async def test_status_and_syncs_tell_the_accounting(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 2)
        status = await api.get("/status")
        assert (status["state"], status["ready"], status["syncs"][0]["dead"]) == (
            "running",
            True,
            2,
        )
        assert status["version"] != ""
        page = await api.get("/syncs?limit=1")
        assert (page["next"], page["items"][0]["name"], page["items"][0]["dead"]) == (
            None,
            "e2e",
            2,
        )
        assert (await api.get("/syncs/e2e"))["received"] == 2


async def test_dead_letters_are_listed_in_pages_and_their_number_is_said(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 5)
        await bury(api.engine, 2, user="other-user")
        path = "/syncs/e2e/dead-letters"
        first = await api.get(f"{path}?limit=3")
        assert (len(first["items"]), first["matching"]) == (3, 7)
        assert first["up_to_id"] == max(one["id"] for one in await api.pages(path))
        ids = [one["id"] for one in await api.pages(f"{path}?limit=3")]
        assert len(ids) == len(set(ids)) == 7
        other = await api.get(f"{path}?user=other-user")
        assert (other["matching"], {one["user_key"] for one in other["items"]}) == (
            2,
            {"other-user"},
        )
        some = await api.get(f"{path}?ids={ids[0]}&ids={ids[1]}&ids=999999999")
        assert [one["id"] for one in some["items"]] == sorted(ids[:2])
        assert some["matching"] == 2
        none = await api.get(f"{path}?reason=internal")
        assert (none["items"], none["matching"]) == ([], 0)


async def test_groups_are_those_that_the_spool_keeps(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3, event_type="Often")
        await bury(api.engine, 1, user="other-user", event_type="Once")
        groups = await api.pages("/syncs/e2e/dead-letters/groups?limit=1")
        assert [(one["event_type"], one["count"]) for one in groups] == [("Often", 3), ("Once", 1)]
        assert all(one["means"] for one in groups)
        sample = await api.get(f"/syncs/e2e/dead-letters/{groups[0]['sample_id']}")
        assert sample["facts"]["event_type"] == "Often"


async def test_a_payload_is_text_with_each_digit_unless_values_are_hidden(tmp_path: Path) -> None:
    event = (
        b'{"user_id":"late-user","event_type":"Paid","time":1000,'
        b'"event_properties":{"z":9007199254740993,"a":1.10}}'
    )
    async with console(tmp_path) as api:
        await api.engine.submit([event], api_key=process.API_KEY)
        await api.engine.settled()
        (found,) = await api.pages("/syncs/e2e/dead-letters")
        path = f"/syncs/e2e/dead-letters/{found['id']}"
        payload = (await api.get(path))["payload"]
        assert '"z": 9007199254740993,\n    "a": 1.10' in payload["text"]
        assert (payload["is_whole"], payload["is_json"]) == (True, True)
        api.access.follow(msgspec.structs.replace(api.access.settings, hide_values=True))
        assert (await api.get(path))["payload"] is None


async def test_no_message_of_a_letter_quotes_a_value_that_is_hidden(tmp_path: Path) -> None:
    faults = [Fault("status", 400, path="/events")]
    async with console(tmp_path, Sandbox(open_attributes=True, faults=faults)) as api:
        await api.engine.submit([process.event("mira-okafor", 1)], api_key=process.API_KEY)
        await api.engine.settled()
        letters = "/syncs/e2e/dead-letters"
        (found,) = await api.pages(letters)
        assert found["message"] != ""  # Intercom's own: who knows what it quotes
        api.access.follow(msgspec.structs.replace(api.access.settings, hide_values=True))
        (hidden,) = await api.pages(letters)
        assert hidden == {**found, "message": ""}
        assert (await api.get(f"{letters}/{found['id']}"))["facts"] == hidden


async def test_parked_users_are_listed_with_their_records(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        users = [f"nobody-{n}" for n in range(3)]
        await api.engine.submit(
            [process.event(user, n) for user in users for n in range(2)], api_key=process.API_KEY
        )
        while len(rows := await api.pages("/syncs/e2e/parked?limit=2")) < len(users):
            await api.get("/status")
        assert [one["user"] for one in rows] == users
        assert {one["reason"] for one in rows} == {"user_not_found"}
        assert all(one["failures"] >= 1 and one["since_ms"] > 0 for one in rows)


async def test_a_workspace_tells_attributes_event_names_and_budget(tmp_path: Path) -> None:
    local = Sandbox(attributes={"seats": "integer", "plan": "string"})
    async with console(tmp_path, local) as api:
        identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
        await api.engine.submit(
            [identify, process.event("mira-okafor", 2, "Signed Up")], api_key=process.API_KEY
        )
        await api.engine.settled()
        (workspace,) = await api.pages("/workspaces")
        path = f"/workspaces/{workspace['id']}"
        assert (workspace["syncs"], workspace["gate"]["health"]) == (["e2e"], "well")
        assert await api.get(path) == {**workspace, "gate": (await api.get(path))["gate"]}
        names = await api.get(f"{path}/event-names")
        assert ([one["name"] for one in names["items"]], names["limit"]) == (["signed up"], 120)
        attributes = await api.get(f"{path}/attributes")
        assert attributes["is_read"]
        assert attributes["items"] == [
            {"name": "plan", "data_type": "string", "options": [], "used_by": ["e2e"]},
            {"name": "seats", "data_type": "integer", "options": [], "used_by": []},
        ]
        budget = await api.get(f"{path}/budget")
        assert budget["sent"] >= 3
        assert budget["limit"] > 0


@pytest.mark.parametrize(
    ("path", "status", "pointers"),
    [
        ("/syncs/nobody", 404, []),
        ("/syncs/..%2fe2e", 404, []),
        ("/syncs/e2e%2fdead-letters", 404, []),
        ("/syncs/%ff", 404, []),
        ("/syncs/e2e/dead-letters/x", 404, []),
        (f"/syncs/e2e/dead-letters/{'9' * 5_000}", 404, []),
        (f"/syncs/e2e/dead-letters/{2**63}", 404, []),
        ("/syncs/relay:nobody/dead-letters", 404, []),
        ("/jobs/1", 404, []),
        ("/workspaces/..", 404, []),
        ("/workspaces/%2e%2e%2fx/budget", 404, []),
        ("/nothing", 404, []),
        ("/syncs/e2e/dead-letters?limit=201", 422, ["/limit"]),
        (f"/syncs/e2e/dead-letters?limit={'9' * 400}", 422, ["/limit"]),
        (f"/syncs/e2e/dead-letters?since_ms={2**63}", 422, ["/since_ms"]),
        ("/syncs/e2e/dead-letters?reason=none", 422, ["/reason"]),
        ("/syncs/e2e/dead-letters?ids=1&ids=x", 422, ["/ids/1"]),
        ("/syncs/e2e/dead-letters?every=true", 422, ["/every"]),
        ("/syncs/e2e/dead-letters?user=a&user=b", 422, ["/user"]),
        ("/syncs/e2e/dead-letters?cursor=garbage", 422, ["/cursor"]),
        ("/syncs?cursor=%00", 422, ["/cursor"]),
        (f"/jobs?cursor={'A' * 6_145}", 422, ["/cursor"]),
        ("/status?x=1", 422, ["/x"]),
    ],
)
async def test_hostile_questions_are_refused_in_words(
    tmp_path: Path, path: str, status: int, pointers: list[str]
) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("GET", path)
        assert (said.status, said.pointers) == (status, pointers), said
        assert said.headers["Content-Type"] == "application/problem+json"


async def test_a_cursor_of_another_list_or_filter_is_refused(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 3)
        path = "/syncs/e2e/dead-letters"
        cursor = (await api.get(f"{path}?limit=1"))["next"]
        assert len((await api.get(f"{path}?cursor={cursor}&limit=200"))["items"]) == 2
        others: list[Any] = [f"{path}?user=late-user&", f"{path}/groups?", "/jobs?", "/syncs?"]
        for other in others:
            said = await api.ask("GET", f"{other}cursor={cursor}")
            assert (said.status, said.pointers) == (422, ["/cursor"])


async def test_a_question_that_takes_too_long_is_stopped_and_says_so(tmp_path: Path) -> None:
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )
    async with console(tmp_path) as api:
        with pytest.raises(Problem) as refusal:
            await Reads(api.engine.spool, 0.01).look(lambda s: s.db.execute(endless).fetchone())
        assert refusal.value.status == 503
        assert "0.01 s" in refusal.value.detail
