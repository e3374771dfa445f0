"""Commands that only read: they write nothing, and say what is there, also where nothing is."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

NOWHERE = "http://127.0.0.1:9"
READING = (
    ("status",),
    ("status", "--json"),
    ("users", "show", "mira-okafor"),
    ("dead-letters", "list"),
    ("dead-letters", "show", "513"),
    ("dead-letters", "replay", "--dry-run"),
    ("spool", "status"),
    ("spool", "verify"),
)


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything in a folder: names, bytes, times, owners."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        owner = (state.st_uid, state.st_gid, state.st_mode, state.st_ino)
        found[str(path)] = (content, state.st_mtime_ns, owner)
    return found


async def read_everything(config: Path) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Run all reading commands, each between two snapshots."""
    said: dict[tuple[str, ...], tuple[int, str, str]] = {}
    for command in READING:
        before = snapshot(config.parent)
        said[command] = await process.run(*command, "-c", str(config))
        assert snapshot(config.parent) == before, command
        assert "Traceback" not in said[command][2]
    return said


async def test_before_the_first_start_nothing_is_made_and_there_is_nothing(tmp_path: Path) -> None:
    said = await read_everything(process.settings(tmp_path, NOWHERE))
    code, out, _ = said["status", "--json"]
    status = json.loads(out)
    [sync] = status["syncs"]
    assert (code, sync["received"], sync["pending"], sync["waiting_bytes"]) == (0, 0, 0, 0)
    nothing = {
        "disk_bytes": 0,
        "used_bytes": 0,
        "waiting_bytes": 0,
        "trouble": "",
        "left": {},
        "full_in_s": None,
        "growth_bytes_per_s": 0.0,
        "max_bytes": 0,
        "disk_free_bytes": None,
        "rows": {},
        "commits": None,
    }
    assert status["spool"] == nothing
    assert "there is no spool yet" in said["status",][1]
    assert said["users", "show", "mira-okafor"][0] == 1
    code, out, _ = said["spool", "status"]
    assert (code, "the first start makes it" in out) == (0, True)


async def fill(config: Path, how: signal.Signals) -> None:
    """Have a daemon take and deliver something, and end it."""
    daemon = await process.start(config)
    identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
    bad = {**process.event("late-user", 2), "time": 1_000}
    events = [identify, bad, process.event("mira-okafor", 3), process.event("nobody-here", 4)]
    await process.upload(f"{daemon.http}/2/httpapi", events)
    while (await daemon.status())["delivered"] < 2:
        pass
    await daemon.end(how)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("mode", [0o700, 0o500])
async def test_after_a_stop_or_a_kill_files_and_folder_stay_as_they_are(
    tmp_path: Path, how: signal.Signals, mode: int
) -> None:
    async with serve(Sandbox(open_attributes=True)) as url:
        config = process.settings(tmp_path, url, events={"select": [{"types": ["*"]}]})
        await fill(config, how)
        (tmp_path / "data").chmod(mode)
        said = await read_everything(config)
    [sync] = json.loads(said["status", "--json"][1])["syncs"]
    assert (sync["received"], sync["delivered"], sync["dead"], sync["pending"]) == (4, 2, 1, 1)
    assert sync["last_delivery_s"] is not None
    assert "plan" in said["users", "show", "mira-okafor"][1]
    assert "too_old" in said["dead-letters", "list"][1]
    assert "too_old" in said["dead-letters", "show", "513"][1]


async def test_other_settings_leave_the_directory_of_contacts(tmp_path: Path) -> None:
    async with serve(Sandbox(open_attributes=True)) as url:
        await fill(process.settings(tmp_path, url), signal.SIGTERM)
        other = process.settings(tmp_path, NOWHERE)
        await read_everything(other)
        code, _, err = await process.run("spool", "compact", "-c", str(other))
        assert code == 0, err
        show = ("users", "show", "mira-okafor", "--json")
        _, elsewhere, _ = await process.run(*show, "-c", str(other))
        again = process.settings(tmp_path, url)
        _, out, _ = await process.run(*show, "-c", str(again))
    assert json.loads(elsewhere)["contact"] is None  # it is another workspace's
    assert json.loads(out)["contact"]["fields"] == ["custom_attributes.plan"]


async def test_beside_a_daemon_that_cannot_be_asked_the_files_are_read(tmp_path: Path) -> None:
    silent = Sandbox(faults=[Fault("hang")])
    async with serve(silent) as url:
        config = process.settings(tmp_path, url, events={"enabled": False})
        async with process.daemon(config) as daemon:
            await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
            identify = process.event("mira-okafor", 2, "$identify")
            await process.upload(f"{daemon.http}/2/httpapi", [identify])
            while not silent.journal:
                await asyncio.sleep(0)
            # Its calls end by a time-out and are written down, however long reading takes.
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                said = await read_everything(config)
            finally:
                daemon.process.send_signal(signal.SIGCONT)
    status = json.loads(said["status", "--json"][1])
    [sync] = status["syncs"]
    assert (sync["received"], sync["pending"]) == (2, 1)
    assert status["spool"]["waiting_bytes"] == sync["waiting_bytes"] > 0
    assert said["users", "show", "mira-okafor"][0] == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that makes the data directory one that cannot be written.

    By a read-only mount where this process may mount, else by its rights.
    """
    data = tmp_path / "data"
    mounted = []

    def make() -> None:
        data.chmod(0o500)
        bind = ["mount", "--bind", str(data), str(data)]
        if shutil.which("mount") and not subprocess.run(bind, capture_output=True).returncode:
            mounted.append(data)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(data)], check=True)

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_cannot_be_written_is_read(
    tmp_path: Path, read_only: Callable[[], None]
) -> None:
    async with serve(Sandbox(open_attributes=True)) as url:
        config = process.settings(tmp_path, url)
        await fill(config, signal.SIGKILL)
    read_only()
    said = await read_everything(config)
    [sync] = json.loads(said["status", "--json"][1])["syncs"]
    assert (sync["received"], sync["delivered"]) == (4, 2)


async def test_a_user_waiting_for_a_free_second_is_shown_so(tmp_path: Path) -> None:
    local = Sandbox()
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config) as daemon:
            now_ms = time.time_ns() // 1_000_000
            events = [{**process.event("mira-okafor", n), "time": now_ms} for n in range(30)]
            await process.upload(f"{daemon.http}/2/httpapi", events)
            while (await daemon.status())["delivered"] < 1:
                pass
            _, out, _ = await process.run("users", "show", "mira-okafor", "-c", str(config))
    assert "its second begins in" in out
