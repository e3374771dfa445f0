"""A canary for each secret, through every error path: it is in no output and in no file."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

CANARIES = (process.TOKEN, "canary-admin-9f27", "canary-reader-51ce")
ASKING = (("check",), ("preview", "--live"), ("forward", "--max-wait", "0", "--json"))
"""The commands that call Intercom."""

COMMANDS = (
    ("check",),
    ("status", "--json"),
    ("preview",),
    ("preview", "--live"),
    ("forward", "--max-wait", "0", "--json"),
    ("dead-letters", "list", "--json"),
    ("spool", "status"),
    ("spool", "verify"),
    ("spool", "compact"),
)


class Seen:
    """All that was put out; where a canary is in it, the test says in what."""

    def __init__(self) -> None:
        self.places = 0

    def look(self, where: str, what: str | bytes) -> None:
        text = what if isinstance(what, bytes) else what.encode()
        for canary in CANARIES:
            assert canary.encode() not in text, where
        self.places += 1

    def look_at_files(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.look(str(path), path.read_bytes())


def _settings(tmp_path: Path, url: str, **sync: Any) -> Path:
    top = {
        "log": {"level": "debug"},
        "admin": {"listen": "127.0.0.1:0", "token": CANARIES[1], "read_token": CANARIES[2]},
        "drain_deadline_s": 0.5,
    }
    return process.settings(tmp_path, url, top=top, **sync)


async def _run_commands(
    config: Path, seen: Seen, commands: Sequence[Sequence[str]] = COMMANDS
) -> None:
    event = json.dumps(process.event("mira-okafor", 1)).encode()
    for command in commands:
        _, out, err = await process.run(*command, "-c", str(config), stdin=event)
        seen.look(f"{command} stdout", out)
        seen.look(f"{command} stderr", err)


async def _run_daemon(config: Path, seen: Seen, until: str) -> None:
    daemon = await process.start(config)
    right = {"Authorization": f"Bearer {CANARIES[1]}"}
    await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
    async with aiohttp.ClientSession(daemon.admin) as session:
        while True:
            async with session.get("/api/status", headers=right) as answer:
                health = (await answer.json())["syncs"][0]["intercom"]["health"]
            if health == until:
                break
        for path in ("/healthz", "/readyz", "/metrics", "/api/status", "/nowhere"):
            for headers in (right, {}, {"Authorization": f"Bearer {CANARIES[1]}x"}):
                async with session.get(path, headers=headers) as answer:
                    seen.look(path, repr(answer.headers) + await answer.text())
        for query in ("", "?ids=x", "?cursor=x"):
            path = f"/api/v1/syncs/e2e/dead-letters{query}"
            async with session.get(path, headers=right) as answer:
                seen.look(path, await answer.text())
        await _sign_in(session, seen)
    await daemon.end(signal.SIGTERM)
    seen.look("the daemon's log", json.dumps(daemon.log))


async def _sign_in(session: aiohttp.ClientSession, seen: Seen) -> None:
    """Sign in with right and wrong tokens, and look at the answers and the audit."""
    own = {"Sec-Fetch-Site": "same-origin"}
    for token in (*CANARIES[1:], f"{CANARIES[1]}x", CANARIES[0]):
        for body in ({"token": token}, {"token": [token]}, {token: 1}):
            async with session.post("/api/v1/session", json=body, headers=own) as answer:
                seen.look("/api/v1/session", repr(answer.headers) + await answer.text())
    right = {"Authorization": f"Bearer {CANARIES[2]}"}
    for path in ("/api/v1/session", "/api/v1/audit"):
        async with session.get(path, headers=right) as answer:
            assert answer.status == 200
            seen.look(path, await answer.text())


async def test_no_secret_is_in_any_output_or_file(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    seen = Seen()
    for name, local, health in (
        ("unauthorized", Sandbox(access_token="another-token"), "unauthorized"),
        ("outage", Sandbox(faults=[Fault("status", 500)]), "outage"),
        ("refused", Sandbox(faults=[Fault("status", 400, path="/events")]), "well"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        async with serve(local) as url:
            config = _settings(folder, url)
            await _run_daemon(config, seen, health)
            if health == "unauthorized":
                await _run_commands(config, seen)
        seen.look_at_files(folder / "data")
    await _run_commands(_settings(tmp_path, "http://127.0.0.1:9"), seen, ASKING)
    await _break_settings(tmp_path, seen)
    measured(f"three canary secrets through {seen.places} outputs and files of every error path: 0")


async def _break_settings(tmp_path: Path, seen: Seen) -> None:
    """The secrets stand in the line that is wrong, or beside it."""
    config = _settings(tmp_path, "http://127.0.0.1:9")
    good = config.read_text(encoding="utf-8")
    token = f'access_token = "{process.TOKEN}"'
    wrong = [
        f'access_token = "{process.TOKEN}',
        f'access_token = ["{process.TOKEN}"]',
        f'access_token = {{ value = "{process.TOKEN}" }}',
        f'access_tokn = "{process.TOKEN}"',
        f'access_token = "env:{process.TOKEN}"\nregion = 7'.replace("env:", ""),
        f'{token}\nregion = "moon"',
        f"{token}\n{token}",
        f'access_token = "{process.TOKEN}\\u0007"',
        f'access_token = "{process.TOKEN} with spaces"',
        f'access_token = "{process.TOKEN}\\nX-Injected: 1"',
    ]
    for n, one in enumerate(wrong):
        await _try(tmp_path, n, good, token, one, seen)
    base_url = 'base_url = "http://127.0.0.1:9"'
    with_secret = base_url.replace("//", f"//user:{process.TOKEN}@")
    await _try(tmp_path, len(wrong), good, base_url, with_secret, seen)


async def _try(tmp_path: Path, n: int, good: str, old: str, new: str, seen: Seen) -> None:
    assert old in good
    config = tmp_path / f"wrong-{n}.toml"
    config.write_text(good.replace(old, new), encoding="utf-8")
    code, out, err = await process.run("check", "-c", str(config))
    assert code != 0, new
    seen.look(new, out + err)
    assert "Traceback" not in err, new
