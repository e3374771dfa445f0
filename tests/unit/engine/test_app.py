"""An engine that cannot start has started nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Intercom
from amplitude_intercom.transports.intercom import Wire
from amplitude_intercom.transports.sandbox import InProcess, Sandbox

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
        assert engine.ready
