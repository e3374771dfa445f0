"""A backup is a whole spool, taken while somebody writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.sqlite.backup import backup
from support.spools import OneSync, kept, opened


def test_a_backup_beside_a_writer_holds_what_was_committed(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    sync.append(*[kept("ann", b'{"n": %d}' % n) for n in range(100)])
    found = sync.load(limit=30)
    sync.deliver(*found.records[:10])
    sync.store.begin()
    sync.queue.deliver([found.records[10].id], 1)  # not committed: not in it
    size = backup(tmp_path / "spool.db", tmp_path / "copy.db")
    sync.store.commit()
    assert size == (tmp_path / "copy.db").stat().st_size
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    sync.store.close()
    again = OneSync(opened(tmp_path / "copy.db"))
    assert again.counters["pending"] == again.store.recount(again.taker)["pending"] == 90
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
