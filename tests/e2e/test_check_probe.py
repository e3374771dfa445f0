"""``check --probe`` as a process: consent, findings, what it keeps, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amplitude_intercom.engine.spool.sqlite.snapshots import look_at
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

ATTRIBUTES = {"plan": "string"}


def quick_clock() -> Callable[[], float]:
    """A clock that runs four times as fast, so that a window of 10 s takes 2.5 s."""
    began_s, since_s = time.time(), time.monotonic()
    return lambda: began_s + 4 * (time.monotonic() - since_s)


def sandbox(**more: Any) -> Sandbox:
    local = Sandbox(now=quick_clock(), attributes=ATTRIBUTES, access_token=process.TOKEN, **more)
    local.add_contact("mira-okafor", "mira@example.com")
    return local


def config_of(folder: Path, url: str) -> Path:
    return process.settings(folder, url, events={"select": [{"types": ["Purchase"]}]})


async def probe(config: Path, *more: str) -> tuple[int, dict[str, str], str]:
    """Return the exit code, the findings on the first sync by key, and stderr."""
    code, out, err = await process.run(
        "check", "-c", str(config), "--probe", "--yes", "--json", *more
    )
    [sync] = json.loads(out)["syncs"]
    return code, {f["key"].removeprefix("sync[0]."): f["text"] for f in sync["findings"]}, err


def states(local: Sandbox) -> list[str]:
    """Return the states of the contacts, the customer's first."""
    return [contact.state for contact in local.contacts.values()]


def kept(folder: Path) -> list[str]:
    """Return what a spool remembers of how ``Remaining`` counts."""
    sql = "SELECT value FROM meta WHERE key LIKE 'remaining %'"
    return [row[0] for row in look_at(folder / "data/spool.db", lambda db: list(db.execute(sql)))]


async def test_a_probe_reports_and_keeps_its_findings_and_leaves_nothing(tmp_path: Path) -> None:
    local = sandbox()
    async with serve(local) as url:
        config = config_of(tmp_path, url)
        code, found, err = await probe(config)
        assert "is not kept: there is no spool" in found["probe.kept"]
        assert not (tmp_path / "data").exists()
        async with process.daemon(config):
            _, beside, _ = await probe(config, "--no-events")
        assert "is in use by process" in beside["probe.kept"]
        assert kept(tmp_path) == []
        _, again, _ = await probe(config, "--no-events")
    assert (code, err) == (0, "")
    assert found["probe.remaining"].endswith("is the value before its call is charged")
    assert "is kept once" in found["probe.same_event"]
    assert "is taken with 202" in found["probe.future_event"]
    assert found.keys() >= {
        "probe.live_email",
        "probe.archived_email",
        "probe.archived_external_id",
    }
    assert again["probe.kept"].endswith("the next start begins with it")
    assert kept(tmp_path) == ["before"]
    assert (states(local)[0], set(states(local)[1:])) == ("live", {"archived"})


async def test_a_probe_that_cannot_archive_names_the_remaining_contact(tmp_path: Path) -> None:
    local = sandbox(strict_email=True, faults=[Fault(kind="status", status=500, path="/contacts/")])
    async with serve(local) as url:
        config = config_of(tmp_path, url)
        code, out, _ = await process.run(
            "check", "-c", str(config), "--probe", "--yes", "--no-events"
        )
    [_, left] = local.contacts
    assert code == 1
    assert f"error: sync[0].probe.left: the test contact with id {left} " in out
    assert states(local) == ["live", "live"]


async def test_a_probe_without_a_terminal_or_consent_makes_nothing(tmp_path: Path) -> None:
    local = sandbox()
    async with serve(local) as url:
        config = str(config_of(tmp_path, url))
        code, out, err = await process.run("check", "-c", config, "--probe")
        assert (code, out) == (2, "")
        assert err.startswith("error: --probe asks on a terminal")
        for wrong in (["--probe", "--offline"], ["--yes"], ["--no-events"]):
            code, _, err = await process.run("check", "-c", config, *wrong)
            assert (code, "--probe" in err) == (2, True)
        code, said = await at_a_terminal(config, b"n\n")
    assert code == 1
    for word in ("makes, in the workspace of e2e", "amplitude-intercom-probe", "archives", "120"):
        assert word in said
    assert not local.journal


async def test_ctrl_c_at_the_terminal_archives_the_probes_contacts(tmp_path: Path) -> None:
    local = sandbox()
    async with serve(local) as url:
        config = str(config_of(tmp_path, url))
        code, said = await at_a_terminal(
            config, b"y\n", lambda: any(entry.path == "/events" for entry in local.journal)
        )
    assert (code, set(states(local)[1:])) == (130, {"archived"})
    assert "all of them are archived" in said


async def at_a_terminal(
    config: str, typed: bytes, interrupt_once: Callable[[], bool] | None = None
) -> tuple[int, str]:
    """Probe at a terminal, typing an answer, then Ctrl-C once something is so; return all said."""
    ours, theirs = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        *process.command("check", "-c", config, "--probe"),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, typed)
    if interrupt_once is not None:
        while not interrupt_once():
            await asyncio.sleep(0)
        child.send_signal(signal.SIGINT)
    await child.communicate()
    said = b""
    try:
        while more := await asyncio.to_thread(os.read, ours, 65_536):
            said += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.returncode is not None
    return child.returncode, said.decode()
