"""The real program as a process, and a local Intercom for it to talk to."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import tomli_w

API_KEY = "e2e-api-key"
TOKEN = "canary-token-4c1d"


def settings(
    folder: Path,
    intercom_url: str,
    *,
    top: Mapping[str, Any] | None = None,
    intercom_more: Mapping[str, Any] | None = None,
    **sync: Any,
) -> Path:
    """Write a settings file; both ports are free ones.

    ``top``: more tables; ``intercom_more``: more keys of ``sync.intercom``; ``sync``: of the sync.
    """
    table = {
        "data_dir": "data",
        "drain_deadline_s": 10.0,
        "http": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        **(top or {}),
        "sync": [
            {
                "name": "e2e",
                "amplitude_api_keys": [API_KEY],
                "intercom": {
                    "access_token": TOKEN,
                    "base_url": intercom_url,
                    "requests_per_minute": 600_000,
                    **(intercom_more or {}),
                },
                "users": {"properties": ["plan", "email"]},
                "events": {"select": [{"types": ["*"]}], "metadata": ["n", "amount"]},
                **sync,
            }
        ],
    }
    path = folder / "settings.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "amplitude_intercom.engine", *arguments]


async def run(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Daemon:
    """``amplitude-intercom run``, once it is ready."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        http: str,
        admin: str,
        log: list[dict[str, Any]],
    ) -> None:
        """``log``: what it has said so far."""
        self.process = process
        self.http = f"http://{http}"
        self.admin = f"http://{admin}"
        self.log = log
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(json.loads(line))

    async def syncs(self) -> list[dict[str, Any]]:
        """Return the status of each sync."""
        return await self._of_status("syncs")

    async def relays(self) -> list[dict[str, Any]]:
        """Return the status of each relay."""
        return await self._of_status("relays")

    async def _of_status(self, what: str) -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin}/api/status") as answer,
        ):
            found: list[dict[str, Any]] = (await answer.json())[what]
            return found

    async def status(self) -> dict[str, Any]:
        """Return the status of the first sync."""
        return (await self.syncs())[0]

    async def all_settled(self) -> list[dict[str, Any]]:
        """Ask until nothing is pending; each question takes as long as the daemon needs."""
        while sum(sync["pending"] for sync in await self.syncs()):
            await asyncio.sleep(0)
        return await self.syncs()

    async def settled(self) -> dict[str, Any]:
        """Ask until nothing is pending; return the status of the first sync."""
        return (await self.all_settled())[0]

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Return what it holds in memory now, or ``VmHWM``: the most since ``forget_peak``."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        """Measure the most that it holds in memory from now on (proc(5), ``clear_refs``)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="utf-8")

    async def ready(self) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin}/readyz") as answer,
        ):
            return answer.status, await answer.json()

    async def end(self, how: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(how)
        code = await self.process.wait()
        await self._reader
        return code


_AS_SYSTEMD: Final = """
import fcntl, os, sys
passed, *command = sys.argv[1:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in passed.split(",")]
for place, fd in enumerate(high, start=3):
    os.dup2(fd, place)
    os.close(fd)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high))}
os.execv(command[0], command)
"""
"""Passes sockets to a program, as sd_listen_fds(3) says."""


async def start(
    config: Path,
    env: Mapping[str, str] | None = None,
    max_files: int | None = None,
    sockets: Sequence[socket.socket] = (),
) -> Daemon:
    """Start the daemon and read its log until it says whether it is ready.

    ``sockets`` are passed to it, as a service manager does.
    """

    def limit() -> None:
        if max_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))

    passed = [one.fileno() for one in sockets]
    starter = [sys.executable, "-c", _AS_SYSTEMD, ",".join(map(str, passed))]
    process = await asyncio.create_subprocess_exec(
        *(starter if passed else []),
        *command("run", "-c", str(config)),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        preexec_fn=limit,
        pass_fds=passed,
    )
    assert process.stderr is not None
    addresses: dict[str, str] = {}
    seen: list[dict[str, Any]] = []
    while line := await process.stderr.readline():
        entry = json.loads(line)
        seen.append(entry)
        if entry["event"] == "source listening":
            addresses["http"] = entry["address"]
        elif entry["event"] == "admin listening":
            addresses["admin"] = entry["address"]
        elif entry["event"] in ("ready", "not ready"):
            return Daemon(process, addresses["http"], addresses["admin"], seen)
    raise AssertionError(f"the daemon ended before it was ready: {seen}")


@asynccontextmanager
async def daemon(
    config: Path, env: Mapping[str, str] | None = None, max_files: int | None = None
) -> AsyncIterator[Daemon]:
    """A running daemon, ended with SIGTERM, which has to be clean."""
    running = await start(config, env, max_files)
    try:
        yield running
    finally:
        code = await running.end(signal.SIGTERM)
    assert code == 0, running.log


def event(user: str, n: int, event_type: str = "Purchase", **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_type": event_type,
        "insert_id": f"{user}-{n}",
        "time": 1_700_000_000_000 + n * 1_000,
        "event_properties": {"n": n},
        **more,
    }


async def upload(url: str, events: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, Any]]:
    return await post(url, json.dumps({"api_key": API_KEY, "events": list(events)}).encode())


async def fetch(url: str) -> Any:
    """Return the JSON at an address."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.json()


async def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def moment(delay_s: float) -> None:
    """Let real time pass: for what another process does by itself."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(delay_s, passed.set)
    await passed.wait()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port
