"""Spools of all versions open, and become like new; the files were written by those versions."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.examine import findings
from amplitude_intercom.engine.spool.rows import DeadLetterQuery
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION, connect, tables_of
from amplitude_intercom.engine.spool.store import Store
from support import simulation, virtual

FIXTURES = Path(__file__).parents[2] / "fixtures"
VERSIONS = range(1, SCHEMA_VERSION + 1)


@pytest.fixture(params=VERSIONS)
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A spool with 24 events: 9 delivered, 2 dead letters, 13 that wait, one user parked."""
    packed = FIXTURES / f"spool-schema-{request.param}.db.gz"
    path = tmp_path / "simulated.db"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def test_it_opens_and_all_of_it_is_there(spool: Path) -> None:
    with closing(connect(spool)) as db:
        store = Store(db, max_bytes=1 << 30, window_ms=1_000)
        assert store.recount() == {"pending": 13, "dead": 2}
        assert store.counters["received"] == 24
        letters = store.letters.find(DeadLetterQuery())
        assert [letter.reason for letter in letters] == ["invalid_json", "missing_field"]
        assert store.users_aside() == {"user_not_found": 1}
        known = store.contacts.get("ann-user")
        assert known is not None
        assert known.contact_id
        assert store.meta.checkpoints() == {"old.jsonl": "17"}
    assert findings(spool) == []


def test_it_becomes_like_a_new_one(spool: Path, tmp_path: Path) -> None:
    with closing(connect(spool)) as old, closing(connect(tmp_path / "new.db")) as new:
        assert tables_of(old) == tables_of(new)
        assert old.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_what_waits_in_it_is_delivered(spool: Path) -> None:
    async def scenario() -> None:
        local = simulation.sandbox()
        for user in ("ann-user", "bob-user", "nobody"):
            local.add_contact(external_id=user)
        async with simulation.engine(spool.parent, local) as engine:
            with anyio.fail_after(24 * 3600):
                await engine.settled()
        assert sorted(event.metadata["n"] for event in local.events) == sorted(
            [*range(6, 9)] * 3 + [*range(2, 6)]
        )

    virtual.run(scenario)


def test_a_damaged_row_does_not_stand_in_the_way_of_a_new_schema(tmp_path: Path) -> None:
    path = tmp_path / "simulated.db"
    path.write_bytes(gzip.decompress((FIXTURES / "spool-schema-1.db.gz").read_bytes()))
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE dead_letters SET user_key = CAST(x'61ff62' AS TEXT) WHERE TRUE")
        other.execute("UPDATE contacts SET written = CAST(x'7bff' AS TEXT)")
        assert other.total_changes > 1
    other.close()
    assert findings(path) == [], "it has no checksums yet that could fail"
    with closing(connect(path)) as db:
        store = Store(db, max_bytes=1 << 30, window_ms=1_000)
        assert store.recount() == {"pending": 13, "dead": 2}
        assert store.contacts.get("ann-user") is None


def test_one_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="written by a later version"):
        connect(path)
    assert path.read_bytes() == before
