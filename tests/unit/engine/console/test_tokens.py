"""The tokens of the admin port, and the files that they come from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from amplitude_intercom.engine import config
from amplitude_intercom.engine.console.tokens import READ_AGAIN_S, READ_WAIT_S, AdminTokens
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def admin(tmp_path: Path, **keys: Any) -> Admin:
    found = config.from_table({"admin": keys}, folder=tmp_path).admin
    assert found is not None
    return found


async def holder_of(tokens: AdminTokens, given: str) -> str | None:
    found = await tokens.find(given)
    return found.credential.who if found else None


async def test_each_token_has_its_rights_and_every_other_text_none(tmp_path: Path) -> None:
    tokens = AdminTokens(admin(tmp_path, token="admin-secret", read_token="read-secret"))
    assert await holder_of(tokens, "admin-secret") == "admin token"
    assert await holder_of(tokens, "read-secret") == "read token"
    for wrong in ("", "admin-secre", "admin-secret ", "\udcff\ud800", "x" * 100_000):
        assert await holder_of(tokens, wrong) is None


async def test_without_a_token_nobody_has_one() -> None:
    assert await holder_of(AdminTokens(Admin()), "") is None


async def test_a_file_is_read_again_when_a_token_is_refused_and_once_a_second_at_most(
    tmp_path: Path,
) -> None:
    file, clock = tmp_path / "token", Clock()
    file.write_text("first")
    tokens = AdminTokens(admin(tmp_path, token="file:token"), clock)
    before = await tokens.find("first")
    assert before is not None
    file.write_text("second")
    assert await holder_of(tokens, "second") == "admin token"
    assert not tokens.is_right(before)
    file.write_text("third")
    assert await holder_of(tokens, "third") is None
    clock.s += READ_AGAIN_S
    assert await holder_of(tokens, "third") == "admin token"


async def test_a_file_that_cannot_be_read_brings_no_former_token_back(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", Clock()
    file.write_text("first")
    tokens = AdminTokens(admin(tmp_path, token="file:token"), clock)
    file.write_text("second")
    assert await holder_of(tokens, "second") == "admin token"
    file.unlink()
    clock.s += READ_AGAIN_S
    assert await holder_of(tokens, "first") is None
    assert await holder_of(tokens, "second") == "admin token"


async def test_a_token_that_is_the_readers_now_opens_no_more_than_that(tmp_path: Path) -> None:
    tokens = AdminTokens(admin(tmp_path, token="one"))
    before = await tokens.find("one")
    assert before is not None
    tokens.follow(admin(tmp_path, token="two", read_token="one"))
    assert not tokens.is_right(before)
    assert await holder_of(tokens, "one") == "read token"


async def test_a_refusal_does_not_wait_for_a_disk_that_hangs() -> None:
    release = asyncio.Event()
    loop, looks = asyncio.get_running_loop(), []

    def hang() -> str:
        looks.append(1)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return "second"

    tokens = AdminTokens(Admin(token=Secret("first", "file:token", hang)))
    async with asyncio.timeout(READ_WAIT_S + 5):
        found = await asyncio.gather(*(holder_of(tokens, "wrong") for _ in range(20)))
    assert found == [None] * 20
    assert await holder_of(tokens, "first") == "admin token"
    assert len(looks) == 1
    release.set()
    while await holder_of(tokens, "second") is None:
        await asyncio.sleep(0)
