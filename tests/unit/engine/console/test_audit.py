"""The audit: its file, and the disks that it meets."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.console.audit import (
    KEPT_FILES,
    MAX_REFUSED,
    MAX_WAITING,
    REFUSED_S,
    WAIT_S,
    Audit,
    AuditEntry,
    AuditFile,
)


class Clock:
    """A clock that is set by hand."""

    s = 0.0

    def __call__(self) -> float:
        return self.s


def of(folder: Path, clock: Clock | None = None) -> Audit:
    return Audit(AuditFile(folder), lambda: 1_700_000_000_000, clock or Clock())


def entry(what: str) -> AuditEntry:
    return AuditEntry(id=0, time_ms=1, who="loopback", peer="::1", action="saved", what=what)


async def whats(audit: Audit) -> list[str]:
    return [one.what for one in (await audit.page(1_000)).entries]


async def test_an_entry_says_who_did_what_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        audit = of(tmp_path)
        assert not [*tmp_path.iterdir()]
        versions = {"before": "abc", "after": "def"}
        await audit.note("admin token", "10.0.0.1", "settings saved", "sync e2e", versions=versions)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    assert (await audit.page(10)).entries == [
        AuditEntry(
            id=1,
            time_ms=1_700_000_000_000,
            who="admin token",
            peer="10.0.0.1",
            action="settings saved",
            what="sync e2e",
            versions=versions,
        )
    ]


async def test_pages_go_from_the_newest_to_the_oldest_and_through_restarts(tmp_path: Path) -> None:
    for n in range(7):
        await of(tmp_path).note("loopback", "::1", "saved", str(n))
    audit, seen, before = of(tmp_path), list[str](), None
    while True:
        page = await audit.page(3, before)
        seen += [one.what for one in page.entries]
        before = page.before
        if before is None:
            break
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert (await audit.page(7)).before is None
    assert (await audit.page(10, before=1)).entries == []


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    most, sent = 100_000, 0
    file = AuditFile(tmp_path, most)
    while not (tmp_path / f"audit.{KEPT_FILES - 1}.jsonl").exists() or sent % 5:
        file.append(entry("x" * 10_000))
        sent += 1
    for _ in range(30):
        file.append(entry("x" * 10_000))
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) <= KEPT_FILES
    assert all((tmp_path / name).stat().st_size <= most + 20_000 for name in names)
    newest = file.page(20, None).entries
    assert [one.id for one in newest] == [*range(sent + 30, sent + 10, -1)]


@pytest.mark.parametrize("cut_off", [b'{"id": 3, "ti', b"\x00" * 20, b"[]\n", b"\xff\xfe\n{}\n"])
async def test_a_line_that_was_cut_off_costs_that_line_alone(
    tmp_path: Path, cut_off: bytes
) -> None:
    for what in ("first", "second"):
        await of(tmp_path).note("loopback", "::1", "saved", what)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(cut_off)
    audit = of(tmp_path)
    await audit.note("loopback", "::1", "saved", "third")
    found = (await audit.page(10)).entries
    assert [(one.id, one.what) for one in found] == [(3, "third"), (2, "second"), (1, "first")]


async def test_texts_are_bounded_and_control_no_terminal(tmp_path: Path) -> None:
    hostile = "\x1b[31m\ud800\n" * 100_000
    audit = of(tmp_path)
    await audit.note(hostile, hostile, hostile, hostile, versions=dict.fromkeys("ab", hostile))
    raw = (tmp_path / "audit.jsonl").read_bytes()
    assert len(raw) < 20_000
    assert raw.count(b"\n") == 1
    found = (await audit.page(1)).entries[0]
    assert all(text.isprintable() for text in (found.who, found.peer, found.what, found.action))


# --- disks ------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "pipe", "link", "gone"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A data directory in which the audit cannot be written."""
    path = tmp_path / "audit.jsonl"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "link":
        path.symlink_to(tmp_path / "elsewhere")
    yield tmp_path / "gone" if request.param == "gone" else tmp_path
    assert not (tmp_path / "elsewhere").exists()


async def test_a_disk_that_fails_refuses_nothing_and_is_said_in_the_log(unwritable: Path) -> None:
    audit = of(unwritable)
    with capture_logs() as lines:
        await audit.note("loopback", "::1", "saved", "settings")
        await asyncio.sleep(0)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("audit", "info"),
        ("an entry of the audit is in the log alone: its file cannot be written", "error"),
    ]
    assert lines[0]["what"] == "settings"
    assert lines[1]["cause"]


async def test_a_disk_that_is_well_again_goes_on(tmp_path: Path) -> None:
    audit = of(tmp_path)
    (tmp_path / "audit.jsonl").mkdir()
    await audit.note("loopback", "::1", "saved", "lost")
    (tmp_path / "audit.jsonl").rmdir()
    with capture_logs() as lines:
        await audit.note("loopback", "::1", "saved", "kept")
        await asyncio.sleep(0)
    assert [line["event"] for line in lines] == ["audit", "the audit is written again"]
    assert await whats(audit) == ["kept"]


class _Hanging(AuditFile):
    """A file whose disk hangs until it is released."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.released = threading.Event()

    def append(self, entry: AuditEntry) -> None:
        self.released.wait(30)
        super().append(entry)


async def test_a_disk_that_hangs_is_waited_for_a_moment_and_for_a_bounded_number(
    tmp_path: Path,
) -> None:
    file = _Hanging(tmp_path)
    audit = Audit(file, lambda: 1, Clock())
    with capture_logs() as lines:
        async with asyncio.timeout(WAIT_S + 10):
            notes = (audit.note("loopback", "::1", "saved", str(n)) for n in range(MAX_WAITING + 5))
            await asyncio.gather(*notes)
    assert len([line for line in lines if line["event"].startswith("an entry")]) == 5
    file.released.set()
    assert await whats(audit) == [str(n) for n in reversed(range(MAX_WAITING))]


async def test_refused_sign_ins_push_nothing_else_out(tmp_path: Path) -> None:
    clock = Clock()
    audit = of(tmp_path, clock)
    for n in range(10 * MAX_REFUSED):
        await audit.note_refused(f"10.0.0.{n}", "wrong token")
    assert len((await audit.page(1_000)).entries) == MAX_REFUSED
    clock.s += REFUSED_S
    await audit.note_refused("10.0.0.1", "wrong token")
    newest = (await audit.page(1)).entries[0]
    assert (newest.action, newest.unwritten) == ("sign-in refused", 9 * MAX_REFUSED)
