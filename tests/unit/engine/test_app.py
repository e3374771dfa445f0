"""An engine that cannot start has started nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Intercom
from amplitude_intercom.engine.sources import SOURCES, load_source
from amplitude_intercom.transports.errors import UnknownSync
from amplitude_intercom.transports.intercom import Wire
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox

CANARY = "canary-5e10"
WELL = InProcess(Sandbox())


def _settings(folder: Path) -> Any:
    syncs = [{"name": n, "intercom": {"access_token": f"{CANARY}-{n}"}} for n in ("well", "bad")]
    return from_table({"data_dir": str(folder), "sync": syncs})


async def test_a_client_that_cannot_be_built_is_a_matter_of_settings(tmp_path: Path) -> None:
    def wire(intercom: Intercom) -> Wire:
        if intercom.access_token.reveal().endswith("bad"):
            raise UnicodeError(intercom.access_token.reveal())
        return WELL

    with pytest.raises(SettingsError, match=r"sync `bad`: sync\.intercom") as caught:
        async with Engine(_settings(tmp_path), wire=wire, inline=True):
            raise AssertionError("it has started")
    assert CANARY not in str(caught.value)
    async with Engine(_settings(tmp_path), wire=lambda _: WELL, inline=True) as engine:
        assert engine.overview.ready


async def test_an_error_of_the_caller_s_own_comes_out_as_it_is(tmp_path: Path) -> None:
    """Not in a group: ``except`` round the block is to catch it."""
    with pytest.raises(KeyError, match="mine"):
        async with Engine(_settings(tmp_path), wire=lambda _: WELL, inline=True):
            raise KeyError("mine")
    with pytest.raises(UnknownSync, match="there is well, bad"):
        async with Engine(_settings(tmp_path), wire=lambda _: WELL, inline=True) as engine:
            await engine.submit([], sync="nobody")


PLUGIN = """
class NoSource:
    pass

class Exits:
    def __init__(self):
        raise SystemExit(3)

class Touchy:
    @property
    def run(self):
        raise RuntimeError("do not touch")

class Broken:
    def __init__(self):
        raise KeyError("its own fault")
"""


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("plugin:Absent", "AttributeError"),
        ("absent_module:Source", "No module named"),
        ("plugin:NoSource", "it has no `run`"),
        ("plugin:Exits", "SystemExit: 3"),
        ("plugin:Touchy", "RuntimeError: do not touch"),
        ("plugin:Broken", "KeyError: 'its own fault'"),
    ],
)
def test_a_source_that_cannot_be_built_is_a_matter_of_settings(
    tmp_path: Path, home: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "plugin-1.dist-info").mkdir()
    for name, text in (
        ("METADATA", "Name: plugin\nVersion: 1\n"),
        ("entry_points.txt", f"[{SOURCES}]\nplugin = {home}\n"),
    ):
        (tmp_path / "plugin-1.dist-info" / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    with pytest.raises(SettingsError, match=f"^sources.plugin: .*{said}"):
        load_source("plugin", {}, [])


def test_of_a_source_that_is_not_installed_it_is_said_which_are() -> None:
    with pytest.raises(SettingsError, match="there is http, stdin"):
        load_source("kafak", {}, [])
