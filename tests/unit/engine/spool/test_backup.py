"""A backup is a whole spool, taken while somebody writes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.sqlite.backup import backup
from support.spools import OneSync, kept, opened, recount


def test_a_backup_beside_a_writer_holds_the_committed_rows(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    sync.append(*[kept("ann", b'{"n": %d}' % n) for n in range(100)])
    found = sync.load(limit=30)
    sync.deliver(*found.records[:10])
    sync.store.begin()
    sync.settling.deliver([found.records[10]], 1)  # not committed: not in it
    size = backup(tmp_path / "spool.db", tmp_path / "copy.db")
    sync.store.commit()
    assert size == (tmp_path / "copy.db").stat().st_size
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    sync.store.close()
    again = OneSync(opened(tmp_path / "copy.db"))
    assert again.counters["pending"] == recount(again.store, again.taker)["pending"] == 90
    assert len(again.load(limit=500).records) == 90


def test_a_backup_overwrites_nothing_and_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    sync.append(kept("ann"))
    sync.store.db.execute("UPDATE inbox SET crc = crc + 1")
    (tmp_path / "there.db").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        backup(tmp_path / "spool.db", tmp_path / "there.db")
    assert (tmp_path / "there.db").read_bytes() == b"mine"
    with pytest.raises(SpoolError, match="inbox 1: its checksum"):
        backup(tmp_path / "spool.db", tmp_path / "copy.db")
    with pytest.raises(SpoolError, match=r"nowhere\.db"):
        backup(tmp_path / "nowhere.db", tmp_path / "copy.db")
    assert sorted(path.name for path in tmp_path.glob("copy*")) == []


def spool_of(folder: Path, events: int = 2_000) -> Path:
    """Return a spool at rest, of a kilobyte an event."""
    sync = OneSync(opened(folder / "spool.db"))
    for _ in range(events // 100):
        sync.append(*[kept("ann", b"x" * 1_000) for _ in range(100)])
    sync.store.close()
    return folder / "spool.db"


def process_of(code: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that may call ``back_up``; it prints what was in the way."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{START}{code}", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


START = """
import os, resource, signal, sqlite3, sys
from pathlib import Path
from amplitude_intercom.engine.spool.sqlite.backup import backup

folder = Path(sys.argv[1])

def back_up():
    try:
        backup(folder / "spool.db", folder / "copy.db")
    except OSError as error:
        print(f"{error.filename}: {error.strerror}")

"""

KILLED_WHILE_IT_WRITES = """
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
back_up()
"""


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("copy*"))


def test_a_killed_backup_is_in_the_way_of_none_and_leaves_nothing_for_long(tmp_path: Path) -> None:
    spool = spool_of(tmp_path)
    with process_of(KILLED_WHILE_IT_WRITES, tmp_path) as killed:
        assert killed.wait() == -signal.SIGXFSZ
    assert copies(tmp_path) != []
    assert "copy.db" not in copies(tmp_path)
    (tmp_path / "copy.db.mine.part").write_bytes(b"mine")
    backup(spool, tmp_path / "copy.db")
    assert copies(tmp_path) == ["copy.db", "copy.db.mine.part"]


AT_THE_SAME_MOMENT = """
print("ready", flush=True)
sys.stdin.read(1)
back_up()
"""


def test_of_backups_to_one_file_at_the_same_moment_one_has_the_name(tmp_path: Path) -> None:
    spool_of(tmp_path)
    at_once = [process_of(AT_THE_SAME_MOMENT, tmp_path) for _ in range(4)]
    for process in at_once:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in at_once:
        assert process.stdin is not None
        process.stdin.write(b"!")
        process.stdin.flush()
    answers = sorted(process.communicate()[0].decode() for process in at_once)
    assert answers == ["", *[f"{tmp_path}/copy.db: it is there already\n"] * 3]
    assert [process.returncode for process in at_once] == [0] * 4
    assert copies(tmp_path) == ["copy.db"]
    assert OneSync(opened(tmp_path / "copy.db")).counters["pending"] == 2_000


OPENED_MEANWHILE = """
waiting = [None]

def open_it(event, arguments):
    if event == "sqlite3.connect" and waiting:
        waiting.pop()
        writer = sqlite3.connect(folder / "spool.db", isolation_level=None)
        writer.execute("INSERT INTO meta (key, value) VALUES ('meanwhile', 'yes')")
        held.append(writer)

held = []
sys.addaudithook(open_it)
back_up()
assert held
"""
"""Before the spool, which is at rest, is read, somebody opens it; it has a log then."""


def test_a_spool_that_is_opened_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    spool_of(tmp_path)
    with process_of(OPENED_MEANWHILE, tmp_path) as process:
        out, _ = process.communicate()
        assert (process.returncode, out) == (0, b"")
    assert opened(tmp_path / "copy.db").meta.get("meanwhile") == "yes"
