"""``forward --export``: the real command, a local Amplitude to fetch from, a local Intercom."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import signal
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.transports.intercom import Request
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude, serve_application
from support import process

KEY, SECRET = "canary-export-key", "canary-export-secret"
DAY = "2023-11-14"
DAY_S = 1_699_920_000
HOURS = f"{DAY}T00", f"{DAY}T11"


class Clock:
    at_s: float = DAY_S

    def __call__(self) -> float:
        return self.at_s


class World:
    """Both sides, and settings for the command between them."""

    def __init__(self, folder: Path, amplitude: LocalAmplitude, clock: Clock) -> None:
        self.folder = folder
        self.amplitude = amplitude
        self.clock = clock
        self.intercom = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
        self.intercom.add_contact(external_id="mira-okafor")
        self.config = folder / "settings.toml"

    def upload(self, at_s: float, numbers: Iterable[int]) -> None:
        """Have Amplitude take events in at an instant."""
        self.clock.at_s = at_s
        events = [process.event("mira-okafor", n) for n in numbers]
        body = json.dumps({"api_key": KEY, "events": events}).encode()
        assert self.amplitude.handle(Request("POST", "/batch", body), {}).status == 200
        self.amplitude.journal.clear()

    def fill(self, hours: Iterable[int], each: int = 5) -> None:
        """Have Amplitude take some events in each of these hours of the day."""
        for hour in hours:
            self.upload(DAY_S + hour * 3600 + 60, range(hour * each, (hour + 1) * each))

    def command(self, *more: str, span: tuple[str, str] = HOURS) -> list[str]:
        return ["forward", "-c", str(self.config), "--json", "--export", *span, *more]

    async def run(
        self, *more: str, span: tuple[str, str] = HOURS
    ) -> tuple[int, dict[str, Any], str]:
        """Run it to its end; no secret is ever seen."""
        code, out, err = await process.run(*self.command(*more, span=span))
        self.secrets_are_kept(out, err)
        return code, json.loads(out or "{}"), err

    def secrets_are_kept(self, *texts: str) -> None:
        stored = [p.read_bytes() for p in (self.folder / "data").rglob("*") if p.is_file()]
        for secret in (KEY, SECRET):
            assert not any(secret in text for text in texts)
            assert not any(secret.encode() in content for content in stored)

    @property
    def asked(self) -> list[str]:
        """The spans that were asked for, and the answers' statuses."""
        return [f"{e.path.partition('start=')[2]} {e.status}" for e in self.amplitude.journal]

    @property
    def delivered(self) -> list[int]:
        return [event.metadata["n"] for event in self.intercom.events]

    @property
    def exports(self) -> list[Path]:
        files = (p for p in (self.folder / "data" / "export").rglob("*") if p.is_file())
        return [file for file in files if file.name != "lock"]


@asynccontextmanager
async def world(
    folder: Path,
    *,
    export: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    now: Any = None,
    **amplitude: Any,
) -> AsyncIterator[World]:
    clock = Clock()
    local = LocalAmplitude(now=now or clock, projects={KEY: SECRET}, events_per_s={}, **amplitude)
    found = World(folder, local, clock)
    async with serve(found.intercom) as intercom_url, serve_amplitude(local) as url:
        keys = {"api_key": KEY, "secret_key": SECRET, "base_url": url}
        tables = {"export": {**keys, **(export or {})}, **(top or {})}
        process.settings(folder, intercom_url, top=tables)
        yield found


async def test_a_span_is_delivered_once_and_in_order_and_not_fetched_again(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.fill([0, 1, 5, 11])
        code, counts, _ = await it.run()
        expected = [n for hour in (0, 1, 5, 11) for n in range(hour * 5, hour * 5 + 5)]
        assert (code, counts["received"], it.delivered) == (0, 20, expected)
        hours = {"asked": 12, "fetched": 12, "empty": 0, "skipped": 0}
        assert (counts["hours"], counts["files"], it.exports) == (hours, 2, [])
        assert it.asked == ["20231114T00&end=20231114T05 200", "20231114T06&end=20231114T11 200"]

        code, counts, err = await it.run()
        assert (code, counts["received"], counts["hours"]["skipped"]) == (0, 0, 12)
        assert "12 hours of 12 fetched before; --again fetches them anew" in err
        assert len(it.asked) == 2

        code, counts, _ = await it.run(span=(f"{DAY}T10", f"{DAY}T13"))
        assert (code, it.asked[2:]) == (0, ["20231114T12&end=20231114T13 404"])
        assert counts["hours"] == {"asked": 4, "fetched": 0, "empty": 2, "skipped": 2}

        code, counts, _ = await it.run("--again")
        assert (code, counts["dropped"], len(it.asked)) == (0, {"duplicate": 20}, 5)
        assert it.delivered == expected


async def test_hours_without_events_are_done(tmp_path: Path) -> None:
    async with world(tmp_path, export={"step_hours": 1}) as it:
        it.fill([1, 3])
        code, counts, _ = await it.run(span=("20231114T00", "20231114T04"))
        assert (code, it.delivered) == (0, [*range(5, 10), *range(15, 20)])
        assert counts["hours"] == {"asked": 5, "fetched": 2, "empty": 3, "skipped": 0}
        _, counts, _ = await it.run(span=("20231114T00", "20231114T04"))
        assert (counts["hours"]["skipped"], len(it.asked)) == (5, 5)


async def test_where_every_hour_is_empty_the_address_is_doubted(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for _ in range(2):
            code, counts, err = await it.run()
            assert (code, counts["hours"]["empty"]) == (0, 12)
            assert "none of these hours has events; is [export] of the right project" in err


async def test_a_span_that_is_too_large_is_halved(tmp_path: Path) -> None:
    async with world(tmp_path, most_exported=10) as it:
        it.fill(range(12))
        code, counts, _ = await it.run()
        assert (code, it.delivered) == (0, list(range(60)))
        assert counts["hours"]["fetched"] == 12
        assert it.asked[:4] == [
            "20231114T00&end=20231114T05 400",
            "20231114T00&end=20231114T02 400",
            "20231114T00&end=20231114T00 200",
            "20231114T01&end=20231114T01 200",
        ]


async def test_an_hour_that_is_too_large_is_named_and_earlier_hours_are_kept(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, most_exported=10) as it:
        it.fill([0, 1])
        it.upload(DAY_S + 2 * 3600, range(100, 111))
        code, counts, err = await it.run()
        assert (code, counts["received"], it.exports) == (1, 10, [])
        assert "2023-11-14T02: this hour is too much for one export (400: Exported data" in err
        assert "--export 2023-11-14T03 END" in err
        await it.run(span=(f"{DAY}T03", f"{DAY}T11"))
        assert it.delivered == list(range(10))


@pytest.mark.parametrize("status", [401, 403])
async def test_keys_that_are_refused_are_named_at_once(tmp_path: Path, status: int) -> None:
    async with world(tmp_path, faults=[Fault("status", status=status)]) as it:
        code, counts, err = await it.run()
        assert (code, counts["received"], len(it.asked)) == (2, 0, 1)
        assert f"Amplitude refuses export.api_key and export.secret_key ({status}: Fault)" in err


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("status", status=429),
        Fault("html", status=200),
        Fault("half"),
        Fault("reset"),
    ],
    ids=["500", "429", "page", "half", "reset"],
)
async def test_an_outage_is_waited_for_and_nothing_is_lost_or_doubled(
    tmp_path: Path, fault: Fault
) -> None:
    async with world(tmp_path, export={"step_hours": 12}) as it:
        it.fill([0, 11])
        it.amplitude.faults.append(fault)
        running = asyncio.create_task(it.run())
        while len(it.amplitude.journal) < 2:
            await process.moment(0.01)
        it.amplitude.faults.clear()
        code, counts, err = await running
        assert (code, it.delivered) == (0, [*range(5), *range(55, 60)])
        assert "2023-11-14T00: no export yet: " in err
        assert (counts["hours"]["fetched"], counts["problems"], it.exports) == (12, [], [])


async def test_the_wait_for_an_export_can_be_bounded(tmp_path: Path) -> None:
    async with world(tmp_path, faults=[Fault("status", status=503)]) as it:
        code, _, err = await it.run("--max-wait", "0.1")
        assert (code, len(it.asked)) == (1, 1)
        assert "2023-11-14T00: no export within --max-wait: it answers 503: Fault" in err


@pytest.mark.parametrize(
    ("how", "after", "beside"),
    [
        (signal.SIGKILL, 500, False),
        (signal.SIGKILL, 3_000, False),
        (signal.SIGTERM, 3_000, False),
        (signal.SIGKILL, 3_000, True),
    ],
)
async def test_an_interrupted_run_goes_on_at_its_line(
    tmp_path: Path, how: signal.Signals, after: int, beside: bool
) -> None:
    """``beside``: a daemon, which has the checkpoints then."""
    top = {
        "admin": {"listen": f"127.0.0.1:{process.free_port()}"},
        "forward": {"max_backlog": 100, "batch_lines": 50},
    }
    async with (
        world(tmp_path, export={"step_hours": 2}, top=top) as it,
        process.daemon(it.config) if beside else nullcontext(),
    ):
        it.fill(range(6), each=1_000)
        span = ("2023-11-13T22", f"{DAY}T05")
        running = await asyncio.create_subprocess_exec(
            *process.command(*it.command(span=span)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        while len(it.intercom.events) < after:
            await process.moment(0.01)
        running.send_signal(how)
        out, err = await running.communicate()
        it.secrets_are_kept(out.decode(), err.decode())
        assert len(it.intercom.events) < 6_000
        [left] = it.exports
        left.with_suffix(".part").write_bytes(b"what a kill left")
        code, counts, _ = await it.run(span=span)
        assert (code, it.exports) == (0, [])
        reread = counts["dropped"].get("duplicate", 0)
        assert reread <= 50 * 17  # not from the beginning of the file
        times = Counter(it.delivered)
        assert (set(times), set(times.values())) == (set(range(6_000)), {1})
        assert [entry.split("&")[0] for entry in it.asked] == [
            "20231113T22",
            "20231114T00",
            "20231114T02",
            "20231114T04",
        ]
        if how == signal.SIGKILL:
            assert it.delivered == sorted(it.delivered)


async def test_two_exports_at_once_do_not_take_each_other_s_files(tmp_path: Path) -> None:
    top = {"admin": {"listen": f"127.0.0.1:{process.free_port()}"}}
    async with world(tmp_path, top=top) as it, process.daemon(it.config):
        it.fill([0, 1, 5, 11])
        with DataDir(tmp_path / "data" / "export"):
            code, _, err = await it.run()
            assert (code, it.asked) == (4, [])
            assert f"/data/export is in use by process {os.getpid()}" in err
        code, counts, _ = await it.run()
        assert (code, counts["delivered"], counts["hours"]["fetched"]) == (0, 20, 12)
        code, counts, _ = await it.run()
        assert (code, counts["received"], counts["hours"]["skipped"]) == (0, 0, 12)


async def test_hours_that_may_lack_events_are_fetched_again(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        now_s = time.time()
        hour = time.strftime("%Y-%m-%dT%H", time.gmtime(now_s))
        it.upload(now_s, range(3))
        for received in (3, 3):
            code, counts, err = await it.run(span=(hour, hour))
            assert (code, counts["received"]) == (0, received)
            assert "the last 1 hour may lack events" in err
        assert it.delivered == [0, 1, 2]


async def test_hours_of_which_a_file_is_damaged_are_fetched_again(tmp_path: Path) -> None:
    lines = b"".join(json.dumps(process.event("mira-okafor", n)).encode() + b"\n" for n in range(9))
    whole = gzip.compress(lines)
    answers = [_zipped(whole[:-9]), _zipped(whole)]

    async def respond(_: web.Request) -> web.Response:
        return web.Response(body=answers.pop(0), content_type="application/zip")

    app = web.Application()
    app.router.add_get("/api/2/export", respond)
    async with (
        serve_application(app, "127.0.0.1", 0) as url,
        world(tmp_path, export={"base_url": url}) as it,
    ):
        span = (f"{DAY}T00", f"{DAY}T00")
        code, counts, err = await it.run(span=span)
        assert (code, len(counts["problems"]), "damaged" in err) == (1, 1, True)
        code, counts, _ = await it.run(span=span)
        assert (code, counts["problems"], it.delivered) == (0, [], list(range(9)))
        code, counts, _ = await it.run(span=span)
        assert (code, counts["hours"]["skipped"]) == (0, 1)


def _zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("100/100_2023-11-14_0#0.json.gz", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--export", "2023-11-15", "2023-11-14"], "`2023-11-14` is before `2023-11-15`"),
        (["--export", "2023-11-14", "9999-11-14"], "yet to come"),
        (["--export", "yesterday", "2023-11-14"], "write it as 2024-05-14T09"),
        (["--export", "2023-11-14", "2023-11-14", "events.jsonl"], "leave the files out"),
        (["--again"], "--again belongs to --export"),
        (["--export", "2023-11-14", "2023-11-14"], "there is no [export] in the settings"),
    ],
)
async def test_wrong_usage_is_refused_in_words(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    code, _, err = await process.run("forward", "-c", str(config), *arguments)
    assert (code, said in " ".join(err.replace("│", "").split())) == (2, True), err
    assert not (tmp_path / "data").exists()
