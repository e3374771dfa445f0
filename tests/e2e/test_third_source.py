"""The papers' source of one's own: installed beside the program, which is not touched."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports import conformance
from amplitude_intercom.transports.conformance import Outside, event
from amplitude_intercom.transports.contract import Source
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.papers import block

PAPER = "transports/README.md"


async def test_a_source_that_is_only_installed_brings_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, inbox = tmp_path / "site", tmp_path / "inbox"
    metadata = installed / "folder_source-1.0.dist-info"
    metadata.mkdir(parents=True)
    inbox.mkdir()
    (installed / "folder_source.py").write_text(block(PAPER, "source-example"), encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: folder-source\nVersion: 1.0\n")
    entry_point = block(PAPER, "source-entry-point").splitlines()[1].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[amplitude_intercom.sources]\n{entry_point}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), *_paths()]))
    monkeypatch.setenv("FOLDER_OF_EVENTS", str(inbox))
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="conformance-user")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        said = (
            block(PAPER, "source-settings")
            .replace('"production"', '"e2e"')
            .replace("inbox", "env:")
        )
        settings = said.replace('"env:"', '"env:FOLDER_OF_EVENTS"') + "every_s = 0.01\n"
        config.write_text(config.read_text() + settings)
        async with process.daemon(config) as daemon:
            for name in ("1", "2"):
                (inbox / "being-written").write_bytes(event(f"{name}-a") + b"\n" + event(name))
                (inbox / "being-written").rename(inbox / f"{name}.json")
            while any(inbox.iterdir()):
                await asyncio.sleep(0)
            status = await daemon.settled()
    assert status["received"] == status["delivered"] == 4
    assert len(local.events) == 4


async def test_a_source_of_an_unknown_sync_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.json").write_bytes(event("1"))
    sources = {"sources": {"stdin": {"paths": [str(tmp_path / "a.json")], "sync": "prod"}}}
    config = process.settings(tmp_path, "http://127.0.0.1:9", top=sources)
    code, _, err = await process.run("run", "-c", str(config))
    assert code == 2
    assert "error: sources.stdin.sync: there is no sync `prod`; there is e2e" in err
    assert "Traceback" not in err


def _paths() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH", "")] if path]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("check", conformance.CHECKS)
async def test_it_keeps_the_contract(tmp_path: Path, check: conformance.Check, seed: int) -> None:
    names = itertools.count()
    scope: dict[str, Any] = {}
    exec(block(PAPER, "source-example"), scope)

    class FolderOutside:
        """Whoever puts files there: one that is gone is safe."""

        ends = False

        def __init__(self, folder: Path) -> None:
            folder.mkdir()
            self._folder = folder
            self._offered: dict[Path, str] = {}
            self.source: Source = scope["FolderSource"](folder=folder, sync="a", every_s=0.0)

        async def offer(self, ids: Sequence[str]) -> None:
            for n, id_ in enumerate(ids):
                path = self._folder / f"{n:03}.json"
                path.with_suffix(".new").write_bytes(event(id_))
                self._offered[path] = id_
                path.with_suffix(".new").rename(path)
            while self.confirmed() != set(ids):
                await asyncio.sleep(0)

        def confirmed(self) -> set[str]:
            return {one for path, one in self._offered.items() if not path.exists()}

    @asynccontextmanager
    async def make() -> AsyncIterator[Outside]:
        yield FolderOutside(tmp_path / str(next(names)))

    await check(make, seed)
