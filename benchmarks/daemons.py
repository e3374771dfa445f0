"""The real daemon in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import tomli_w

from benchmarks.processes import Facts


class Daemon:
    """A process of ``amplitude-intercom run`` that is ready."""

    def __init__(
        self, process: subprocess.Popen[str], ready_s: float, http: str, admin: str
    ) -> None:
        self.process = process
        self.facts = Facts(process.pid)
        self.ready_s = ready_s
        """Seconds from the start of the process until its log said ``ready``."""
        self.http = http
        """Address of the HTTP source."""
        self.admin = admin
        """Address of the admin port."""

    def counted(self) -> Counted:
        """Return the daemon's counters, summed over its syncs."""
        with urllib.request.urlopen(f"http://{self.admin}/api/status") as answer:
            syncs = msgspec.json.decode(answer.read(), type=_Status).syncs
        return Counted(
            sum(sync.received for sync in syncs),
            sum(sync.delivered for sync in syncs),
            sum(sync.pending for sync in syncs),
        )

    def settle(self, delivered: int, at_most_s: float = 120.0, look_every_s: float = 0.25) -> None:
        """Wait until no event is pending.

        Raises:
            AssertionError: it takes over ``at_most_s``, or not ``delivered`` events were delivered.
        """
        ends = time.monotonic() + at_most_s
        counted = self.counted()
        while counted.pending:
            assert time.monotonic() < ends, f"{counted} after {at_most_s:g} s"
            time.sleep(look_every_s)
            counted = self.counted()
        assert counted.delivered == delivered, f"{counted}, not {delivered:,} delivered"


class Counted(msgspec.Struct, frozen=True):
    """Numbers of events."""

    received: int
    delivered: int
    pending: int


class _Status(msgspec.Struct):
    syncs: list[Counted]


@contextmanager
def running(
    table: dict[str, object],
    how: signal.Signals = signal.SIGTERM,
    cores: Collection[int] = (),
) -> Iterator[Daemon]:
    """Run the daemon with these settings, on ``cores`` if given; end it with the signal ``how``."""
    folder = Path(str(table["data_dir"])).parent
    config = folder / "settings.toml"
    config.write_text(tomli_w.dumps(table | {"log": {"level": "info"}}), encoding="utf-8")
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "amplitude_intercom.engine", "run", "-c", str(config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    if cores:
        os.sched_setaffinity(process.pid, cores)
    try:
        yield _ready(process, started)
    finally:
        process.send_signal(how)
        with suppress(ValueError):
            process.communicate()


def _ready(process: subprocess.Popen[str], started: float) -> Daemon:
    assert process.stderr is not None
    http = admin = ""
    for line in process.stderr:
        entry = msgspec.json.decode(line)
        if entry["event"] == "source listening":
            http = entry["address"]
        if entry["event"] == "admin listening":
            admin = entry["address"]
        if entry["event"] == "ready":
            return Daemon(process, time.perf_counter() - started, http, admin)
    raise RuntimeError("the daemon ended before it was ready")
