"""Keys of requests that are done once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from amplitude_intercom.engine.spool.asked_once import (
    KEPT_MS,
    MOST_KEPT,
    AskedJob,
    Once,
    asked_before,
    keep_asked,
)
from amplitude_intercom.engine.spool.meta import Meta

NOW_MS = 1_700_000_000_000
ONCE = Once("key", "content")


@pytest.fixture
def meta() -> Iterator[Meta]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    yield Meta(db)
    db.close()


@pytest.mark.parametrize(("after_ms", "is_kept"), [(KEPT_MS - 1, True), (KEPT_MS, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_key_is_kept_for_a_day_whatever_the_clock_does(
    meta: Meta, after_ms: int, is_kept: bool, sign: int
) -> None:
    keep_asked(meta, ONCE, 7, NOW_MS)
    found = asked_before(meta, ONCE, NOW_MS + sign * after_ms)
    assert found == (AskedJob("key", "content", 7, NOW_MS) if is_kept else None)


def test_of_too_many_keys_the_first_are_forgotten(meta: Meta) -> None:
    for n in range(MOST_KEPT + 1):
        keep_asked(meta, Once(f"key-{n}", ""), n, NOW_MS)
    assert asked_before(meta, Once("key-0", ""), NOW_MS) is None
    assert asked_before(meta, Once("key-1", ""), NOW_MS) is not None


@pytest.mark.parametrize("damage", ["", "[[1]]", "{", "\x00"])
def test_damaged_keys_are_forgotten(meta: Meta, damage: str) -> None:
    meta.set("asked_once", damage)
    assert asked_before(meta, ONCE, NOW_MS) is None
    keep_asked(meta, ONCE, 1, NOW_MS)
    assert asked_before(meta, ONCE, NOW_MS) is not None
