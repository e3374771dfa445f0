"""``dead-letters`` at the prompt: what is listed, shown, foreseen and refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

NOWHERE = "http://127.0.0.1:9"
NASTY = (
    "[/bold]\\a",
    "\x1b[31mred\x07",
    "two\nlines",
    "\u202egnp.exe",
    "x" * 400,
    ":smile: [link=a]",
)


async def letters(action: str, config: Path, *more: str) -> tuple[int, str, str]:
    return await process.run("dead-letters", action, "-c", str(config), *more)


async def bury(config: Path, events: Sequence[dict[str, Any]]) -> None:
    """Have a daemon take events that become dead letters, and end it."""
    async with process.daemon(config) as daemon:
        code, answer = await process.upload(f"{daemon.http}/2/httpapi", events)
        assert code == 200, answer
        await daemon.settled()


async def listed(config: Path) -> list[dict[str, Any]]:
    """Return all that is listed."""
    _, out, _ = await letters("list", config, "--json")
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def ids_of(config: Path) -> list[str]:
    """Return the ids of all that is listed."""
    return [str(letter["id"]) for letter in await listed(config)]


def said_after(err: str, shown: str) -> str:
    """Return the position that a shortened list says."""
    found = re.fullmatch(rf"{shown} shown; --after (\S+) shows more\n", err)
    assert found, err
    return found[1]


async def test_a_shortened_list_says_how_much_is_left_out(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await bury(config, [process.event("late-user", n, time=1_000) for n in range(7)])
    there = await listed(config)
    code, out, err = await letters("list", config, "--limit", "3")
    assert (code, len(out.splitlines())) == (0, 4)
    position = said_after(err, "3 of 7")
    code, out, err = await letters("list", config, "--after", position, "--json")
    assert (code, json.loads(out), err) == (0, there[3:], "")
    _, _, err = await letters("list", config, "--limit", "6")
    last = said_after(err, "6 of 7")
    assert (await letters("discard", config, str(there[-1]["id"])))[0] == 0
    _, _, err = await letters("list", config, "--after", last)
    assert err == f"no dead letters behind {last}\n"
    code, out, err = await letters("list", config, "--limit", "2", "--user", "late-user", "--json")
    assert (code, len(json.loads(out)), "2 of 6 shown" in err) == (0, 2, True)


async def test_text_from_outside_is_text(tmp_path: Path) -> None:
    unknown = {"select": [{"types": ["*"]}], "unknown_user": "dead_letter"}
    async with serve(Sandbox()) as url:
        config = process.settings(tmp_path, url, events=unknown)
        await bury(config, [process.event(user, 1) for user in NASTY])
    ids = await ids_of(config)
    assert len(ids) == len(NASTY)
    shown = [("show", id_) for id_ in ids]
    for action, *more in (("list",), *shown, ("replay", "--dry-run")):
        code, out, err = await letters(action, config, *more)
        assert (code, err) == (0, ""), action
        assert all(line.isprintable() for line in out.splitlines()), action
    _, out, _ = await letters("list", config)
    assert "[/bold]\\a" in out
    assert "\\x1b[31mred\\x07" in out
    assert ":smile: [link=a]" in out
    code, out, _ = await process.run("users", "show", NASTY[1], "-c", str(config), "--json")
    assert (code, json.loads(out)["dead_letters"]) == (0, {"invalid_identity": 1})


@pytest.mark.parametrize("running", [True, False], ids=["through a daemon", "from the file"])
async def test_a_user_of_any_name_is_found(tmp_path: Path, running: bool) -> None:
    names = [*NASTY, "..", "a/b", "50%", "{x}", "é ✓", "?a=b#c"]
    admin = {"admin": {"listen": f"127.0.0.1:{process.free_port()}"}}
    config = process.settings(tmp_path, NOWHERE, top=admin, events={"enabled": False})
    async with process.daemon(config) as daemon:
        events = [process.event(name, n, "$identify") for n, name in enumerate(names)]
        body = {"api_key": process.API_KEY, "events": events, "options": {"min_id_length": 1}}
        await process.post(f"{daemon.http}/2/httpapi", json.dumps(body).encode())
        if running:
            await _find(config, names)
    if not running:
        await _find(config, names)


async def _find(config: Path, names: Sequence[str]) -> None:
    for name in names:
        code, out, err = await process.run("users", "show", name, "-c", str(config), "--json")
        assert err == "", name
        state = json.loads(out)
        seen = state["waiting"]["records"] + sum(state["dead_letters"].values())
        assert (code, state["user"], seen, err) == (0, name, 1, "")


async def test_impossible_arguments_are_refused_by_name(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    for action in ("list", "replay", "discard"):
        code, _, err = await letters(action, config, "--reason", "refusd")
        assert (code, "did you mean `refused`?" in " ".join(err.split())) == (2, True)
        code, _, err = await letters(action, config, "--since", "yesterday")
        assert (code, "--since" in err) == (2, True)
        code, _, err = await letters(action, config, "--until", "[/bold]\x1b")
        assert (code, "--until" in err, "\x1b" in err) == (2, True, False)
    assert not (tmp_path / "data").exists()


async def test_for_people_and_for_programs_the_same_is_said(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await bury(config, [process.event("late-user", n, time=1_000) for n in range(3)])
    first, second, third = await ids_of(config)
    _, out, _ = await letters("show", config, first, "--json")
    assert json.loads(out)["facts"]["reason"] == "too_old"
    _, out, _ = await letters("show", config, first)
    assert "too_old" in out
    assert "\nstatus " not in out, "no call was made"
    assert json.loads(out[out.index("\n{") :])["user_id"] == "late-user"
    assert (await letters("replay", config, first))[:2] == (0, "1 replayed\n")
    assert (await letters("discard", config, second))[:2] == (0, "1 dead letter discarded\n")
    _, out, _ = await letters("discard", config, third, "--json")
    assert json.loads(out)["counts"] == {"discarded": 1}


async def test_a_dry_run_shows_the_bytes_that_a_replay_sends(tmp_path: Path) -> None:
    """Seconds that were claimed, ones that are claimed now, and a contact that is known."""
    local = Sandbox(attributes={"plan": "string"})
    local.add_contact(external_id="known-user")
    async with serve(local) as url:
        await _bury_for_replay(tmp_path, url)
        config = process.settings(
            tmp_path, url, users={"properties": ["plan"], "trigger": "any_update"}
        )
        code, out, err = await letters("replay", config, "--dry-run", "--json")
        assert code == 0, err
        foreseen = [
            request for line in out.splitlines() for request in json.loads(line)["requests"]
        ]
        assert len(foreseen) == 8
        for user in ("late-comer", "early-bird"):
            local.add_contact(external_id=user)
        before = len(local.journal)
        code, out, _ = await letters("replay", config, "--json")
        assert (code, json.loads(out)["counts"]) == (0, {"replayed": 7})
        code, _, err = await process.run("forward", "-c", str(config), "--max-wait", "60")
        assert code == 0, err
    sent = [
        (call.method, call.path, call.body)
        for call in local.journal[before:]
        if call.method != "GET"
    ]
    wanted = [
        (
            request["method"],
            request["path"],
            json.dumps(request["body"], separators=(",", ":")).encode(),
        )
        for request in foreseen
    ]
    assert sorted(sent) == sorted(wanted)


async def _bury_for_replay(tmp_path: Path, url: str) -> None:
    delivery = {"retry_attempts": 1, "retry_window_s": 1.0}
    every = {"select": [{"types": ["*"]}]}
    config = process.settings(
        tmp_path, url, delivery=delivery, events={**every, "unknown_user": "dead_letter"}
    )
    second: dict[str, Any] = {"time": 1_700_000_000_000}
    same_second = [process.event("late-comer", n, **second) for n in range(3)]
    ahead = [process.event("early-bird", n, time=4_000_000_000_000) for n in range(2)]
    identify = process.event("known-user", 1, "$identify", user_properties={"plan": "free"})
    await bury(config, [*same_second, *ahead, identify])
    too_old = process.settings(tmp_path, url, delivery=delivery, events={**every, "max_age_s": 1.0})
    update: dict[str, Any] = {"user_properties": {"plan": "pro"}}
    unclaimed = process.event("late-comer", 9, **second)
    await bury(too_old, [process.event("known-user", 2, **update), unclaimed])


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_an_id_that_is_not_there_is_no_success(tmp_path: Path, action: str) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await bury(config, [process.event("late-user", n, time=1_000) for n in range(3)])
    if action == "replay":
        code, _, err = await letters(action, config, "999", "--dry-run")
        assert (code, "no such dead letter: 1 of 1 id (999)" in err) == (1, True)
    first, *_ = await ids_of(config)
    code, out, err = await letters(action, config, first, "999", "999", "--json")
    assert (code, json.loads(out)["done"]) == (1, 1)
    assert "no such dead letter: 1 of 2 ids (999)" in err
    code, _, err = await letters(action, config, "--reason", "refused")
    assert (code, "no such" in err) == (0, False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--after", "512"],
        ["--after", f"1-{2**63}"],
        ["--after", "\x1b[31mX"],
        ["--limit", str(2**63)],
        ["--user", os.fsdecode(b"\xff")],
        ["--reason", "\x1b[31mX"],
        ["--since", "\x1b[31mX"],
        ["--\x1b[31mX"],
        ["\x1b[31mX"],
    ],
    ids=ascii,
)
async def test_a_value_that_no_dead_letter_has_is_refused_and_shown_as_text(
    tmp_path: Path, arguments: list[str]
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    code, out, err = await letters("list", config, *arguments)
    assert (code, out, "Traceback" in err, "\x1b" in err) == (2, "", False, False)
    if "31mX" in arguments[-1]:
        assert "\\x1b[31mX" in err


@pytest.mark.parametrize("action", ["show", "replay", "discard"])
async def test_a_number_that_is_no_id_is_refused(tmp_path: Path, action: str) -> None:
    code, _, err = await letters(action, process.settings(tmp_path, NOWHERE), str(2**63))
    assert (code, "Traceback" in err) == (2, False)


async def test_contradicting_arguments_are_refused(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    code, _, err = await letters("discard", config, "--all", "24")
    assert (code, "not both" in " ".join(err.split())) == (2, True)
    code, _, err = await letters("list", config, "--since", "2024-05-15", "--until", "2024-05-14")
    assert (code, "is not before --until" in err) == (2, True)
    code, _, err = await letters("list", config, "--since", "yesterday")
    assert (code, "2024-05-14T09:00:00Z" in err) == (2, True)


async def test_the_local_intercom_is_for_this_machine_and_names_its_faults() -> None:
    for listen in ("8720", "0.0.0.0:0", ":8720"):
        code, _, err = await process.run("sandbox", "--listen", listen)
        assert (code, "--listen" in err) == (2, True), listen
    code, _, err = await process.run("sandbox", "--fault", '{"kind":"nope"}')
    assert (code, "the kinds are status, html, hang" in err) == (2, True)


async def test_a_dry_run_names_events_that_are_kept_in_part(tmp_path: Path) -> None:
    top = {"forward": {"max_line_bytes": 20_000}}
    config = process.settings(tmp_path, NOWHERE, top=top)
    line = json.dumps(process.event("mira-okafor", 1, padding="x" * 100_000)).encode()
    await process.run("forward", "-c", str(config), stdin=line)
    [id_] = await ids_of(config)
    code, out, _ = await letters("replay", config, "--dry-run")
    assert (code, out) == (0, f"{id_} reject: too_large only its beginning is kept\n")
