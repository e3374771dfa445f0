"""What is wrong is named, by the real process, with the right exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amplitude_intercom.engine.spool.sqlite.spool_file import FORMER_APPLICATION_ID
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

NOWHERE = "http://127.0.0.1:9"


def _edit(config: Path, old: str, new: str) -> None:
    text = config.read_text(encoding="utf-8")
    assert old in text
    config.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('data_dir = "data"', 'data_dri = "data"', "data_dri"),
        ("drain_deadline_s = 10.0", 'drain_deadline_s = "soon"', "drain_deadline_s"),
        ('name = "e2e"', 'name = "e2e"\nenabeld = true', "sync[0]: Object contains unknown field"),
        (process.TOKEN, "env:NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE"),
        (process.TOKEN, "file:no-such-file", "no-such-file"),
        ("types = [", "types = [{ a = 1 }, ", "sync[0].events.select[0].types[0]"),
        ("[http]", "[http", "not TOML"),
        (
            'name = "e2e"',
            'name = "e2e"\nmapping = { nested = "drip" }',
            "sync[0].mapping.nested: Invalid enum value 'drip'; Expected one of `flatten`, `drop`",
        ),
        (
            "metadata = [\n",
            'unknown_user = "wait"\nmetadata = [\n',
            "Expected one of `park`, `create`, `dead_letter`, `drop`",
        ),
    ],
)
async def test_a_wrong_setting_is_named_and_ends_with_2(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    _edit(config, old, new)
    code, _, err = await process.run("check", "-c", str(config))
    assert code == 2
    assert said in err
    assert "Traceback" not in err


async def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, _, err = await process.run("run", "-c", str(tmp_path / "absent.toml"))
    assert (code, "absent.toml: cannot be read" in err) == (2, True)


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        _edit(config, 'listen = "127.0.0.1:0"', f'listen = "{address}"')
        code, _, err = await process.run("run", "-c", str(config))
    assert code == 2
    assert "error: http.listen: " in err
    assert address in err


async def test_a_second_instance_on_the_same_data_is_refused_by_name(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon:
        code, _, err = await process.run("run", "-c", str(config))
    assert code == 4
    assert f"in use by process {daemon.process.pid}" in err


@pytest.mark.parametrize("command", [("run",), ("forward",), ("spool", "compact")])
async def test_a_former_spool_is_refused_by_name_and_left_alone(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    former = tmp_path / "data" / "e2e.db"
    former.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(former)) as db:
        db.execute(f"PRAGMA application_id = {FORMER_APPLICATION_ID}")
        db.execute("CREATE TABLE records (id)")
    before = former.read_bytes()
    code, _, err = await process.run(*command, "-c", str(config))
    assert (code, "holds spools of an earlier build (e2e.db)" in err, "Traceback" in err) == (
        2,
        True,
        False,
    )
    assert former.read_bytes() == before
    assert not (tmp_path / "data" / "spool.db").exists()


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    code, _, err = await process.run("forward", "-c", str(config), str(tmp_path / "absent.jsonl"))
    assert code == 1
    assert "absent.jsonl: No such file" in err


@pytest.mark.parametrize("command", ["check --offline", "preview"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"user_id,event_type\nu-00001,A\n", "not JSON: CSV"),
        (b'[{"event_type": "A", "user_id": "mira-okafor"},', "damaged: its JSON ends too early"),
    ],
)
async def test_a_sample_that_cannot_be_read_is_named(
    tmp_path: Path, command: str, content: bytes, said: str
) -> None:
    (tmp_path / "sample").write_bytes(content)
    config = process.settings(tmp_path, NOWHERE)
    name, *flags = command.split()
    code, out, err = await process.run(name, "-c", str(config), *flags, str(tmp_path / "sample"))
    assert code == 1
    assert f"error: {tmp_path}/sample: {said}" in err
    assert "Traceback" not in err
    assert out.count("mira-okafor") == (name == "preview" and b"mira" in content)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
async def test_bad_files_of_any_name_are_named_on_any_terminal(
    tmp_path: Path, encoding: str
) -> None:
    names = [b"b\xc3\xbccher.json", b"\xff\xfe.json", b"bell \x1b]0;x\x07.json"]
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"a,b\n1,2\n")
    config = process.settings(tmp_path, NOWHERE)
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    code, out, err = await process.run(
        "forward", "-c", str(config), "--json", str(tmp_path), str(tmp_path / "é-1"), env=env
    )
    shown = ["b\u00fccher.json" if encoding == "utf-8" else "b\\xfccher.json"]
    shown += ["\\xff\\xfe.json", "bell \\x1b]0;x\\x07.json"]
    for text in shown:
        assert f"{text}: not JSON: CSV, its first line is 'a,b'" in err
    assert code == 1
    assert len(json.loads(out)["problems"]) == 4
    assert "Traceback" not in err
    assert "\x1b" not in err + out


async def test_a_gigantic_line_is_kept_as_a_dead_letter_and_stops_nothing(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="mira-okafor")
    good = json.dumps(process.event("mira-okafor", 1)).encode()
    gigantic = b'{"event_type": "' + b"x" * 3_000_000 + b'"}'
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        code, out, _ = await process.run(
            "forward", "-c", str(config), "--json", stdin=gigantic + b"\n" + good
        )
    assert (code, json.loads(out)["delivered"], json.loads(out)["dead"]) == (0, 1, 1)


async def test_wrong_requests_are_answered_and_nothing_is_stored(
    tmp_path: Path,
) -> None:
    bodies = [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"api_key": "%s", "events": [{"event_type": "a", "user_id": "mira-okafor", "x": nan}]}'
        % process.API_KEY.encode(),
        b'{"api_key": "somebody-elses", "events": [{"event_type": "a", "user_id": "mira-okafor"}]}',
    ]
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon, aiohttp.ClientSession() as session:
        for body in bodies:
            async with session.post(f"{daemon.http}/2/httpapi", data=body) as answer:
                assert (answer.status, (await answer.json())["code"]) == (400, 400)
        status = await daemon.status()
    assert status["received"] == 0


async def test_a_full_spool_answers_503_and_takes_events_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    """Intercom is down, so that the spool fills; then it is there, and the spool drains."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    spool = {"spool": {"max_bytes": 1_000_000}}
    config = process.settings(tmp_path, f"http://127.0.0.1:{port}", top=spool)
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    async with process.daemon(config) as daemon:
        url, taken = f"{daemon.http}/2/httpapi", 0
        while (await _upload_padded(url, taken))[0] == 200:
            taken += 1
        status, body = await _upload_padded(url, taken)
        assert (status, body["code"]) == (503, 503)
        assert "spool_full" in body["error"]
        async with serve(local, "127.0.0.1", port):
            await daemon.settled()
        status, _ = await _upload_padded(url, taken)
        assert status == 200
    assert len(local.events) == taken * 20


async def _upload_padded(url: str, round_: int) -> tuple[int, dict[str, Any]]:
    padding = {"padding": "x" * 1_000}
    events = [process.event("mira-okafor", round_ * 20 + n, **padding) for n in range(20)]
    return await process.upload(url, events)


async def test_no_token_is_in_any_output_or_file(tmp_path: Path) -> None:
    local = Sandbox(access_token="another-token")
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top={"log": {"level": "debug"}})
        daemon = await process.start(config)
        await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
        while (await daemon.status())["intercom"]["health"] != "unauthorized":
            pass
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{daemon.admin}/metrics") as answer,
        ):
            metrics = await answer.text()
        await daemon.end(signal.SIGTERM)
    seen = json.dumps(daemon.log) + metrics + repr(await _all_bytes(tmp_path / "data"))
    assert process.TOKEN not in seen


async def _all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())
