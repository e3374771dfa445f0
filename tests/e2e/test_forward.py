"""``forward``: files and pipes, as a person or a cron job uses it."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import signal
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process, reference

LINES = [
    b'{"event_type": "$identify", "user_id": "mira-okafor", "insert_id": "1",'
    b' "user_properties": {"$set": {"plan": "pro"}}}',
    b'{"event_type": "Purchase", "user_id": "mira-okafor", "insert_id": "2",'
    b' "time": 1700000000000, "event_properties": {"n": 1}}',
    b'{"event_type": "Purchase", "user_id": "mira-okafor", "$insert_id": "3",'
    b' "event_time": "2024-05-14 09:00:01.000000", "event_properties": {"n": 2}}',
    b'{"event_type": "Purchase", "user_id": "mira-okafor", "event_ti',
    b'{"event_type": "Purchase", "user_id": "mira-okafor", "event_properties": {"n": 3}}',
    b"\xff\xfe not text",
    b'{"event_type": "Purchase", "user_id": "mira-okafor", "event_properties": {"n": NaN}}',
    b"",
]


async def _forward(config: Path, *paths: str, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    code, out, err = await process.run("forward", "-c", str(config), "--json", *paths, stdin=stdin)
    assert out, err
    return code, json.loads(out)


async def test_mixed_dialects_are_delivered_and_bad_lines_kept_with_their_number(
    tmp_path: Path,
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(LINES))
    local = Sandbox(open_attributes=True)
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        code, counts = await _forward(config, str(file))
    assert (code, counts["received"], counts["delivered"], counts["dead"]) == (0, 7, 5, 2)
    assert [e.metadata.get("n") for e in local.events] == [1, 2, 3, None]
    _, out, _ = await process.run("dead-letters", "list", "-c", str(config), "--json")
    letters = [(letter["line"], letter["reason"], letter["origin"]) for letter in json.loads(out)]
    assert letters == [(n, "invalid_json", "events.jsonl") for n in (4, 6)]


async def test_the_same_file_twice_delivers_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(LINES))
    local = Sandbox(open_attributes=True)
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        await _forward(config, str(file))
        calls = local.calls
        code, counts = await _forward(config, str(file))
    assert (code, counts["dropped"], counts["dead"]) == (0, {"duplicate": 7}, 0)
    assert local.calls == calls


async def test_a_file_of_which_nothing_was_selected_is_read_anew_with_other_settings(
    tmp_path: Path,
) -> None:
    """What only was counted is written late, and its checkpoints too: they must be forgotten."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(
        b"\n".join(json.dumps(process.event("mira-okafor", n)).encode() for n in range(9))
    )
    local = Sandbox()
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url:
        none = process.settings(tmp_path, url, events={"select": [{"types": ["Other"]}]})
        _, first = await _forward(none, str(file))
        _, second = await _forward(process.settings(tmp_path, url), str(file))
    assert (first["received"], first["dropped"]) == (9, {"not_selected": 9})
    assert (second["received"], second["delivered"]) == (9, 9)


async def test_a_pipe_works_like_a_file_and_strict_tells_of_dead_letters(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        code, counts = await _forward(config, "--strict", "-", stdin=b"\n".join(LINES))
    assert (code, counts["delivered"], counts["dead"]) == (3, 5, 2)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
async def test_a_silent_pipe_does_not_hold_up_a_signal(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    running = await asyncio.create_subprocess_exec(
        *process.command("forward", "-c", str(config), "-"),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert running.stdin is not None
    assert running.stderr is not None
    running.stdin.write(b"not json\n")
    while not (tmp_path / "data" / "spool.db").exists():
        await asyncio.sleep(0)
    running.send_signal(how)
    async with asyncio.timeout(20):
        said = await running.stderr.read()
        assert await running.wait() == code
    running.stdin.close()
    assert b"stopped before the end; what was read is kept" in said


async def test_a_file_that_is_not_there_is_named_while_others_still_wait(tmp_path: Path) -> None:
    there = tmp_path / "events.jsonl"
    there.write_bytes(json.dumps(process.event("mira-okafor", 1)).encode())
    config = process.settings(tmp_path, "http://127.0.0.1:9")  # so it waits for ever
    running = await asyncio.create_subprocess_exec(
        *process.command("forward", "-c", str(config), "absent.jsonl", str(there)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert running.stderr is not None
    async with asyncio.timeout(20):
        assert b"absent.jsonl" in await running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    await running.communicate()


async def test_a_replayed_dead_letter_is_delivered_and_a_discarded_one_is_counted(
    tmp_path: Path,
) -> None:
    local = Sandbox(open_attributes=True)
    lines = b"\n".join(
        json.dumps(process.event(user, 1)).encode() for user in ("late-comer", "never-comes")
    )
    async with serve(local) as url:
        events = {
            "select": [{"types": ["*"]}],
            "metadata": ["n"],
            "unknown_user": "dead_letter",
        }
        config = process.settings(tmp_path, url, events=events)
        _, counts = await _forward(config, stdin=lines)
        assert counts["dead"] == 2
        local.add_contact(external_id="late-comer")
        ask = ("-c", str(config), "--user")
        _, out, _ = await process.run(
            "dead-letters", "replay", *ask, "late-comer", "--dry-run", "--json"
        )
        assert json.loads(out)["requests"][0]["path"] == "/events"
        _, out, _ = await process.run("dead-letters", "replay", *ask, "late-comer", "--json")
        assert json.loads(out)["counts"] == {"replayed": 1}
        _, out, _ = await process.run("dead-letters", "discard", *ask, "never-comes", "--json")
        assert json.loads(out)["counts"] == {"discarded": 1}
        code, _ = await _forward(config, "--max-wait", "60")
        assert code == 0
    assert [e.metadata["n"] for e in local.events] == [1]
    _, out, _ = await process.run("status", "-c", str(config), "--json")
    [sync] = json.loads(out)["syncs"]
    assert (sync["received"], sync["delivered"], sync["dropped"]) == (2, 1, {"discarded": 1})


async def test_the_export_sample_is_accounted_for_line_by_line(tmp_path: Path) -> None:
    rows = reference.export_rows()
    sample = tmp_path / "export.jsonl"
    sample.write_bytes(b"\n".join(rows.values()) + b"\n")
    local = Sandbox(open_attributes=True)
    for user in ("u-10001", "u-10002", "u-10003", "u-10004"):
        local.add_contact(external_id=user)
    async with serve(local) as url:
        events = {"select": [{"types": ["*"]}], "metadata": ["plan"], "unknown_user": "drop"}
        config = process.settings(tmp_path, url, events=events)
        code, counts = await _forward(config, str(sample))
        again, second = await _forward(config, str(sample))
    settled = counts["delivered"] + sum(counts["dropped"].values()) + counts["dead"]
    assert (code, counts["received"], settled, counts["pending"]) == (0, len(rows), len(rows), 0)
    assert counts["dropped"]["duplicate"] == 1
    assert counts["dropped"]["loop_guard"] == sum(b"[Intercom] " in row for row in rows.values())
    assert counts["dead"] >= 1
    assert (again, second["delivered"], second["dead"]) == (0, 0, 0)


# --- archives, folders, interruptions -----------------------------------------------------


def _lines(first: int, count: int) -> bytes:
    events = (process.event("mira-okafor", n) for n in range(first, first + count))
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def _known() -> Sandbox:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    return local


async def test_everything_an_export_can_be_saved_as_goes_through_one_command(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "export" / "412345"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("412345/412345_2024-05-14_9#0.json.gz", gzip.compress(_lines(0, 10)))
    (folder / "412345_2024-05-14_10#0.json.gz").write_bytes(gzip.compress(_lines(10, 10)))
    (folder / "412345_2024-05-14_9#1.json").write_bytes(_lines(20, 10))
    array = [process.event("mira-okafor", n) for n in range(30, 40)]
    (tmp_path / "array.json").write_text(json.dumps(array, indent=2), encoding="utf-8")
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        paths = [str(tmp_path / name) for name in ("export.zip", "export", "array.json")]
        code, counts = await _forward(config, *paths, "-", stdin=gzip.compress(_lines(40, 10)))
    assert (code, counts["delivered"], counts["files"]) == (0, 50, 5)
    expected = [*range(10), *range(20, 30), *range(10, 20), *range(30, 50)]
    assert [e.metadata["n"] for e in local.events] == expected


async def test_json_in_any_shape_and_packing_is_delivered(tmp_path: Path) -> None:
    def event(n: int) -> dict[str, object]:
        return process.event("mira-okafor", n)

    body = {"api_key": "another", "events": [event(4), event(5)]}
    texts = {
        "0-pretty.json": json.dumps(event(0), indent=2) + "\n" + json.dumps(event(1), indent=2),
        "1-concatenated.json": json.dumps(event(2)) + json.dumps(event(3)),
        "2-body.json": json.dumps(body, indent=1),
        "3-commas.json": f"{json.dumps(event(6))},\n{json.dumps(event(7))},\n",
        "4-windows.json": "\ufeff" + "".join(f"{json.dumps(event(n))}\r\n\r\n" for n in (8, 9)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    packed = {
        "5.json.bz2": bz2.compress(_lines(10, 2)),
        "6.json.xz": lzma.compress(_lines(12, 2)),
        "7.zip": _zipped({"1.json.gz": _zipped({"x/1.json.gz": gzip.compress(_lines(14, 2))})}),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        paths = [str(tmp_path / name) for name in (*texts, *packed)]
        code, counts = await _forward(config, *paths)
        again, second = await _forward(config, *paths)
    assert (code, counts["delivered"], counts["dead"]) == (0, 16, 0)
    assert [e.metadata["n"] for e in local.events] == list(range(16))
    assert (again, second["dropped"]) == (0, {"duplicate": 16})


def _zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


async def test_files_without_json_are_refused_by_name_and_the_rest_is_delivered(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_bytes(b"user_id,event_type\n" + b"u-00001,A\n" * 5_000)
    (tmp_path / "b.json").write_bytes(b"PAR1" + bytes(9))
    (tmp_path / "c.json").write_bytes(
        b'[{"event_type": "A", "user_id": "mira-okafor", "insert_id": "c"},'
    )
    (tmp_path / "d.json").write_bytes(_lines(0, 3))
    (tmp_path / "e.json").symlink_to("nowhere")
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        paths = [str(tmp_path / name) for name in ("a.csv", "b.json", "c.json", "d.json", "e.json")]
        first = await process.run("forward", "-c", str(config), "--json", *paths)
        again = await process.run("forward", "-c", str(config), "--json", *paths)
    for code, out, err in (first, again):
        assert code == 1
        for said in (
            "a.csv: not JSON: CSV, its first line is 'user_id,event_type'",
            "b.json: not JSON: a Parquet file",
            "c.json: damaged: its JSON ends too early",
            "e.json: No such file or directory",
        ):
            assert f"error: {tmp_path}/{said}" in err
            assert f"{tmp_path}/{said}" in json.loads(out)["problems"]
        assert "Traceback" not in err
    counts = [json.loads(out) for _, out, _ in (first, again)]
    assert [(c["received"], c["delivered"], c["dead"]) for c in counts] == [(4, 4, 0), (4, 0, 0)]


async def test_identify_objects_and_times_of_2014_are_taken_from_files(tmp_path: Path) -> None:
    lines = [
        {"user_id": "mira-okafor", "user_properties": {"$set": {"plan": "pro"}}},
        {"group_type": "org", "group_value": "acme", "group_properties": {"size": 3}},
        process.event("mira-okafor", 1) | {"time": 1396381378000},
        process.event("mira-okafor", 2) | {"time": 1396381378},
    ]
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        code, counts = await _forward(config, stdin=b"\n".join(map(msgspec.json.encode, lines)))
    assert (code, counts["delivered"], counts["dead"]) == (0, 3, 0)
    assert counts["dropped"] == {"group_identify": 1}
    assert [e.created_at // 10 for e in local.events] == [139638137, 139638137]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro"}


async def test_events_of_a_file_have_the_bound_of_http(tmp_path: Path) -> None:
    large = [process.event("mira-okafor", n, padding="x" * 20_000 + str(n)) for n in range(3)]
    stdin = b"\n".join(map(msgspec.json.encode, [*large, process.event("mira-okafor", 9)]))
    local = _known()
    async with serve(local) as url:
        http = {"http": {"listen": "127.0.0.1:0", "max_event_bytes": 10_000}}
        config = process.settings(tmp_path, url, top=http)
        code, counts = await _forward(config, stdin=stdin)
        _, again = await _forward(config, stdin=stdin)
    assert (code, counts["delivered"], counts["dead_by_reason"]) == (0, 1, {"too_large": 3})
    assert again["dropped"] == {"duplicate": 4}


async def test_a_damaged_archive_is_named_and_its_whole_part_is_delivered(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(_lines(0, 5))[:-9])
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(_lines(5, 5)))
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        paths = [str(tmp_path / f"{name}.json.gz") for name in "ab"]
        code, out, err = await process.run("forward", "-c", str(config), "--json", *paths)
    assert (code, json.loads(out)["delivered"]) == (1, 10)
    assert "a.json.gz: damaged: it ends too early" in err


async def test_since_and_until_choose_by_the_event_s_own_time(tmp_path: Path) -> None:
    local = _known()
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        times = ("--since", "2023-11-14T22:13:23Z", "--until", "2023-11-14 22:13:25")
        code, counts = await _forward(config, *times, stdin=_lines(0, 10))
    assert (code, counts["delivered"], counts["passed_over"]) == (0, 2, 8)
    assert [e.metadata["n"] for e in local.events] == [3, 4]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_an_interrupted_run_goes_on_where_it_stopped_and_sends_nothing_twice(
    tmp_path: Path, how: signal.Signals
) -> None:
    total = 4_000
    file = tmp_path / "events.json.gz"
    file.write_bytes(gzip.compress(_lines(0, total), 1))
    local = _known()
    async with serve(local) as url:
        select = {"select": [{"types": ["*"]}], "metadata": ["n"]}
        top = {"forward": {"max_backlog": 200, "batch_lines": 50}}
        config = process.settings(tmp_path, url, top=top, events=select)
        running = await asyncio.create_subprocess_exec(
            *process.command("forward", "-c", str(config), "--json", "--max-wait", "0", str(file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        while len(local.events) < 1_000:
            await asyncio.sleep(0)
        running.send_signal(how)
        out, err = await running.communicate()
        sent = len(local.events)
        assert sent < total // 2  # it was interrupted, and had not read everything ahead
        if how == signal.SIGTERM:
            assert b"run it again, it goes on from there" in err
            assert json.loads(out)["received"] < total // 2
        code, counts = await _forward(config, "--max-wait", "0", str(file))
    reread = counts["dropped"].get("duplicate", 0)
    assert counts["received"] < total
    assert reread <= 50 * 17
    times = Counter(e.metadata["n"] for e in local.events)
    assert set(times.values()) == {1}
    assert len(times) + counts["pending"] >= total - 1
    assert code in (0, 1)


@pytest.mark.parametrize("full", ["backlog", "spool"])
async def test_a_run_that_cannot_read_on_says_why_and_ends_at_its_deadline(
    tmp_path: Path, full: str
) -> None:
    """Intercom is down, and what may wait does: there is no end of the input to count from."""
    top = {
        "backlog": {"forward": {"max_backlog": 50, "batch_lines": 20}},
        "spool": {"spool": {"max_bytes": 1_000_000}, "forward": {"batch_lines": 20}},
    }[full]
    config = process.settings(tmp_path, "http://127.0.0.1:9", top=top)
    padded = [process.event("mira-okafor", n, padding="x" * 2_000) for n in range(2_000)]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(json.dumps(event).encode() for event in padded))
    async with asyncio.timeout(60):
        code, _, err = await process.run(
            "forward", "-c", str(config), "--max-wait", "0.1", str(file)
        )
    why = {"backlog": "events wait (forward.max_backlog", "spool": "spool_full"}[full]
    [line] = [line for line in err.splitlines() if line.startswith("e2e: reading pauses: ")]
    assert why in line
    assert (code, "nothing was settled while reading paused" in err) == (1, True)
    assert "run it again, it goes on from there" in err


async def test_a_run_that_reads_no_event_ends_at_once_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_bytes(json.dumps(process.event("never-known", 1)).encode())
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "table.csv").write_bytes(b"user_id,event_type\nu-00001,A\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "earlier.jsonl").write_bytes(_lines(0, 1))
    until = ("--until", "2001-01-01")
    async with serve(Sandbox()) as url:
        config = process.settings(tmp_path, url)
        files = {name: str(tmp_path / name) for name in ("empty.jsonl", "table.csv", "empty")}
        code, _, err = await process.run("forward", "-c", str(config), files["empty.jsonl"])
        assert (code, "no event was read\n" in err) == (0, True)
        ask = ("forward", "-c", str(config))
        code, _, err = await process.run(*ask, "--max-wait", "0", str(tmp_path / "some.jsonl"))
        assert (code, "1 event not delivered yet, kept for the next run" in err) == (1, True)
        async with asyncio.timeout(60):  # it is kept for four hours
            for arguments in ([*files.values()], [], [*until, str(tmp_path / "earlier.jsonl")]):
                code, _, err = await process.run(*ask, *arguments)
                assert code == 1
                assert "was read; kept from before: 1 event; `run`" in err


async def test_a_run_of_which_no_event_is_accepted_ends_at_once_and_says_so(
    tmp_path: Path,
) -> None:
    """The wrong file: a user of before is unknown for four hours, and nothing is added to it."""
    other = json.dumps({**process.event("mira-okafor", 1), "event_type": "Other"}).encode()
    (tmp_path / "dropped.jsonl").write_bytes(other)
    (tmp_path / "dead.jsonl").write_bytes(
        b'{"event_type": "Purchase", "user_id": "mira-okafor", "time": "never"}'
    )
    names = ("dropped.jsonl", "dead.jsonl")
    async with serve(Sandbox()) as url:
        only = {"select": [{"types": ["Purchase"]}], "metadata": ["n"]}
        config = process.settings(tmp_path, url, events=only)
        ask = ("forward", "-c", str(config))
        for name in names:
            code, _, err = await process.run(*ask, str(tmp_path / name))
            assert (code, "none of the events that were read was accepted\n" in err) == (0, True)
        await _forward(config, "--max-wait", "0", stdin=_lines(0, 1))
        async with asyncio.timeout(60):
            for name in names:
                code, _, err = await process.run(*ask, str(tmp_path / name))
                assert code == 1
                assert "was accepted; kept from before: 1 event; `run`" in err


async def test_a_run_that_reads_no_event_delivers_what_is_kept_where_a_wait_is_given(
    tmp_path: Path,
) -> None:
    local = Sandbox()
    async with serve(local) as url:
        config = process.settings(tmp_path, "http://127.0.0.1:9")
        await _forward(config, "--max-wait", "0", stdin=_lines(0, 1))
        local.add_contact(external_id="mira-okafor")
        config = process.settings(tmp_path, url)
        code, counts = await _forward(config, "--max-wait", "60")
    assert (code, counts["received"], counts["delivered"]) == (0, 0, 1)


async def test_reading_that_goes_on_is_said(tmp_path: Path) -> None:
    port = process.free_port()
    top = {"forward": {"max_backlog": 50, "batch_lines": 20}}
    config = process.settings(tmp_path, f"http://127.0.0.1:{port}", top=top)
    file = tmp_path / "events.jsonl"
    file.write_bytes(_lines(0, 2_000))
    running = await asyncio.create_subprocess_exec(
        *process.command("forward", "-c", str(config), str(file)), stderr=asyncio.subprocess.PIPE
    )
    assert running.stderr is not None
    async with asyncio.timeout(60):
        while b"reading pauses" not in await running.stderr.readline():
            pass
        async with serve(_known(), "127.0.0.1", port):
            _, err = await running.communicate()
    assert (running.returncode, b"e2e: reading goes on" in err) == (0, True)


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "soon"])
async def test_a_wait_that_is_no_time_is_refused(tmp_path: Path, seconds: str) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    code, _, err = await process.run("forward", "-c", str(config), "--max-wait", seconds)
    assert (code, "--max-wait" in err, "Traceback" in err) == (2, True, False)
    code, _, err = await process.run("sandbox", "--latency", seconds)
    assert (code, "--latency" in err, "Traceback" in err) == (2, True, False)
