"""Random histories of a relay, with kills: nothing is lost, and each device's order is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.relay_history import History
from support.virtual import in_virtual_time


@in_virtual_time
async def live_through(folder: Path, seed: int) -> None:
    history = History(folder, seed)
    await history.run()
    history.check()


@pytest.mark.parametrize("seed", range(60))
def test_accepted_requests_are_accounted_for_and_in_order(tmp_path: Path, seed: int) -> None:
    live_through(tmp_path, seed)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("first", range(1_000, 3_000, 100))
def test_two_thousand_more(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        live_through(folder, seed)
