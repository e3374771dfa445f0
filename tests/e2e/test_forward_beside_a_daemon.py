"""``forward`` beside a running daemon, which takes its events and delivers them."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import signal
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

NOWHERE = "http://127.0.0.1:9"
USERS = [f"user-{n}" for n in range(8)]


def known() -> Sandbox:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    for user in USERS:
        local.add_contact(external_id=user)
    return local


def settings(folder: Path, url: str, port: int, **top: Any) -> Path:
    admin = {"listen": f"127.0.0.1:{port}", **top.pop("admin", {})}
    return process.settings(folder, url, top={"admin": admin, **top})


def events(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    return [process.event(USERS[n % len(USERS)], n, **more) for n in numbers]


def lines(some: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in some)


def delivered(local: Sandbox) -> dict[str, list[int]]:
    """Return the numbers of the delivered events by user, in their order."""
    found: dict[str, list[int]] = defaultdict(list)
    for one in local.events:
        user = local.contacts[one.contact_id].external_id
        assert user is not None
        found[user].append(one.metadata["n"])
    return found


def of_file(local: Sandbox, total: int) -> dict[str, list[int]]:
    return {user: [n for n in found if n < total] for user, found in delivered(local).items()}


def expected(total: int) -> dict[str, list[int]]:
    return {user: list(range(at, total, len(USERS))) for at, user in enumerate(USERS)}


async def forward(config: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = await process.run("forward", "-c", str(config), "--json", *arguments)
    assert "Traceback" not in err
    return code, json.loads(out or "{}"), err


async def started(config: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *process.command("forward", "-c", str(config), "--json", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def checkpoints(daemon: process.Daemon) -> list[str]:
    path = f"{daemon.admin}/api/v1/syncs/e2e/checkpoints"
    return [one["source"] for one in (await process.fetch(path))["items"]]


async def test_a_file_goes_through_the_daemon_as_it_goes_without_one(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    bad = b"no event\n" + json.dumps({"event_type": "$groupidentify"}).encode() + b"\n"
    file.write_bytes(lines(events(range(100))) + bad)
    local = known()
    async with serve(local) as url:
        config = settings(tmp_path, url, process.free_port())
        async with process.daemon(config) as daemon:
            code, counts, err = await forward(config, str(file))
            assert "is handed the events" in err
            assert await checkpoints(daemon) == []
            strict, again, _ = await forward(config, "--strict", str(file))
            arguments = ("forward", "-c", str(config), "--json", "--strict", "-")
            piped = await process.run(*arguments, stdin=lines(events(range(100, 108))) + b"worse")
            assert (await daemon.status())["pending"] == 0
    assert (code, counts["received"], counts["delivered"], counts["pending"]) == (0, 102, 100, 0)
    assert (counts["dead_by_reason"], "meanwhile" in counts) == ({"invalid_json": 1}, False)
    assert counts["dropped"] == {"group_identify": 1}
    assert (strict, again["delivered"], again["dropped"]["duplicate"]) == (0, 0, 101)
    assert (piped[0], json.loads(piped[1])["delivered"]) == (3, 8)
    assert delivered(local) == expected(108)


async def test_beside_other_traffic_nothing_is_lost_and_order_is_kept(tmp_path: Path) -> None:
    total = 2_000
    file = tmp_path / "events.json.gz"
    poison = [b"\xff poison\n", b'{"event_type": "Purchase", "user_id": "user-1", "time": "?"}\n']
    file.write_bytes(gzip.compress(lines(events(range(total))) + b"".join(poison)))
    local = known()
    async with serve(local) as url:
        config = settings(tmp_path, url, process.free_port(), forward={"batch_lines": 100})
        async with process.daemon(config) as daemon:
            running = await started(config, str(file))
            sent = 0
            while running.returncode is None:
                numbers = range(total + sent * 10, total + sent * 10 + 10)
                status, _ = await process.upload(f"{daemon.http}/2/httpapi", events(numbers))
                assert status == 200
                sent += 1
                await asyncio.sleep(0)
            out, err = await running.communicate()
            await daemon.settled()
    counts = json.loads(out)
    assert (running.returncode, counts["received"], counts["pending"]) == (0, total + 2, 0), err
    assert (counts["accepted"], sum(counts["dead_by_reason"].values())) == (total, 2)
    assert (counts["delivered"], counts["meanwhile"]["received"] > total + 2) == (None, True)
    assert of_file(local, total) == expected(total)
    assert len(local.events) == total + sent * 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_an_interrupted_run_goes_on_from_the_checkpoints_in_the_daemon(
    tmp_path: Path, how: signal.Signals
) -> None:
    total = 2_000
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(events(range(total))))
    local = known()
    async with serve(local) as url:
        top = {"forward": {"batch_lines": 20, "max_backlog": 100}}
        config = settings(tmp_path, url, process.free_port(), **top)
        async with process.daemon(config) as daemon:
            running = await started(config, str(file))
            while (await daemon.status())["received"] < 500:
                await asyncio.sleep(0)
            running.send_signal(how)
            out, err = await running.communicate()
            own = [name for name in await checkpoints(daemon) if name.startswith("handed ")]
            if how == signal.SIGTERM:
                assert (running.returncode, own) == (143, [])
                assert b"run it again, it goes on from there" in err
                assert 500 <= json.loads(out)["received"] < total
            else:
                assert len(own) == 1  # it goes after a day
            code, counts, _ = await forward(config, str(file))
            assert code == 0
            assert counts["received"] < total
    assert delivered(local) == expected(total)


async def test_a_daemon_that_is_killed_and_restarted_loses_nothing(tmp_path: Path) -> None:
    total = 2_000
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(events(range(total))))
    local = known()
    async with serve(local) as url:
        top = {"forward": {"batch_lines": 20, "max_backlog": 100}}
        config = settings(tmp_path, url, process.free_port(), **top)
        daemon = await process.start(config)
        running = await started(config, str(file))
        while (await daemon.status())["received"] < 500:
            await asyncio.sleep(0)
        await daemon.end(signal.SIGKILL)
        async with process.daemon(config) as daemon:
            out, err = await running.communicate()
            await daemon.settled()
    assert running.returncode == 0, err
    assert json.loads(out)["received"] == total
    found = delivered(local)
    # Calls under way at the kill are made again, and Intercom knows them by their second.
    assert {user: list(dict.fromkeys(numbers)) for user, numbers in found.items()} == expected(
        total
    )


async def test_a_daemon_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(events(range(2_000))))
    top = {"forward": {"batch_lines": 20, "max_backlog": 100}}
    config = settings(tmp_path, NOWHERE, process.free_port(), **top)
    daemon = await process.start(config)
    running = await started(config, "--max-wait", "0.1", str(file))
    while (await daemon.status())["received"] < 100:
        await asyncio.sleep(0)
    await daemon.end(signal.SIGTERM)
    _, err = await running.communicate()
    assert running.returncode == 1
    assert b"run it again, it goes on from there" in err
    assert b"Traceback" not in err
    local = known()
    async with serve(local) as url:
        code, _, _ = await forward(settings(tmp_path, url, process.free_port()), str(file))
    assert (code, delivered(local)) == (0, expected(2_000))


@pytest.mark.parametrize("full", ["backlog", "spool"])
async def test_a_run_that_cannot_hand_on_says_why_and_ends_at_its_deadline(
    tmp_path: Path, full: str
) -> None:
    top: dict[str, Any] = {
        "backlog": {"forward": {"max_backlog": 50, "batch_lines": 20}},
        "spool": {"spool": {"max_bytes": 1_000_000}, "forward": {"batch_lines": 20}},
    }[full]
    config = settings(tmp_path, NOWHERE, process.free_port(), **top)
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(events(range(2_000), padding="x" * 2_000)))
    async with process.daemon(config), asyncio.timeout(60):
        code, counts, err = await forward(config, "--max-wait", "0.1", str(file))
    why = {"backlog": "events wait (forward.max_backlog", "spool": "spool_full"}[full]
    [line] = [line for line in err.splitlines() if line.startswith("e2e: reading pauses: ")]
    assert why in line
    assert (code, "nothing was settled while reading paused" in err) == (1, True)
    assert 0 < counts["pending"] < 2_000


async def test_what_waits_when_the_wait_ends_stays_with_the_daemon(tmp_path: Path) -> None:
    config = settings(tmp_path, NOWHERE, process.free_port())
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(events(range(3))))
    async with process.daemon(config) as daemon:
        code, counts, err = await forward(config, "--max-wait", "0.2", str(file))
        assert (code, counts["pending"]) == (1, 3)
        assert "3 events not delivered yet, the daemon goes on with them" in err
        assert (await daemon.status())["pending"] == 3
        (tmp_path / "empty.jsonl").touch()
        code, counts, err = await forward(config, str(tmp_path / "empty.jsonl"))
        assert (code, "no event was read\n" in err) == (0, True)  # what waits is not this run's


@pytest.mark.parametrize("why", ["no [admin]", "another token", "a reader's token", "no such sync"])
async def test_a_daemon_that_cannot_be_handed_to_is_an_error_with_its_remedy(
    tmp_path: Path, why: str
) -> None:
    tokens = {"token": "admin-secret", "read_token": "read-secret"}
    config = settings(tmp_path, NOWHERE, process.free_port(), admin=tokens)
    (tmp_path / "events.jsonl").write_bytes(lines(events(range(3))))
    async with process.daemon(config) as daemon:
        pattern, new, code, *said = {
            "no [admin]": (r"\[admin\]\n(\w.*\n)*", "", 4, "there is no [admin]", "stop it first"),
            "another token": ("admin-secret", "wrong", 4, "answers 401", "its `token`"),
            "a reader's token": (
                r'"admin-secret"\nread_token = "read-secret"',
                '"read-secret"',
                1,
                "answers 403",
                "`admin.token` has to be the daemon's own",
            ),
            "no such sync": ('name = "e2e"', 'name = "new"', 2, "no sync named new", "`reload`"),
        }[why]
        text = config.read_text(encoding="utf-8")
        changed = re.sub(pattern, new, text)
        assert changed != text
        config.write_text(changed, encoding="utf-8")
        found, counts, err = await forward(config, str(tmp_path / "events.jsonl"))
        assert (found, counts.get("received", 0)) == (code, 0)
        assert all(word in err for word in said), err
        config.write_text(text, encoding="utf-8")
        assert daemon.process.returncode is None


async def test_an_export_and_a_folder_are_handed_over_and_two_runs_do_not_meet(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        for hour in range(3):
            some = events(range(hour * 40, hour * 40 + 40))
            name = f"412345/412345_2024-05-14_{hour}#0.json.gz"
            archive.writestr(name, gzip.compress(lines(some)))
    for n in range(30):
        (folder / f"z-{n:02}.jsonl").write_bytes(lines(events(range(120 + n * 4, 124 + n * 4))))
    local = known()
    async with serve(local) as url:
        config = settings(tmp_path, url, process.free_port())
        async with process.daemon(config) as daemon:
            both = await asyncio.gather(*(forward(config, str(folder)) for _ in range(2)))
            assert await checkpoints(daemon) == []
    assert [code for code, *_ in both] == [0, 0]
    # One may find the checkpoints of the other, and go on from there.
    assert max(counts["received"] for _, counts, _ in both) == 240
    counted = Counter(n for numbers in delivered(local).values() for n in numbers)
    assert (set(counted.values()), len(counted)) == ({1}, 240)


async def test_what_is_mixed_with_other_events_is_said_to_be_so(tmp_path: Path) -> None:
    """A stranger's event waits: nobody knows then what became of whose."""
    (tmp_path / "events.jsonl").write_bytes(lines(events(range(5))) + b"bad\n")
    local = known()
    async with serve(local) as url:
        config = settings(tmp_path, url, process.free_port())
        async with process.daemon(config) as daemon:
            await process.upload(f"{daemon.http}/2/httpapi", [process.event("stranger", 1)])
            while not (await daemon.status())["parked_users"]:
                await asyncio.sleep(0)
            file = str(tmp_path / "events.jsonl")
            arguments = ("forward", "-c", str(config), "--max-wait", "1", file)
            code, out, err = await process.run(*arguments)
            assert (code, out) == (1, "")
            assert [line.split() for line in err.splitlines()[1:6]] == [
                ["6", "received", "from", "1", "file"],
                ["5", "accepted"],
                ["1", "dead", "letters:", "invalid_json"],
                ["1", "waiting"],
                *[
                    "meanwhile, with the daemon's other events: 5 delivered,".split()
                    + "1 dead letter (invalid_json)".split()
                ],
            ]
    assert sum(map(len, delivered(local).values())) == 5
