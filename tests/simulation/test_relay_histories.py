"""Random histories of a relay, with kills: nothing is lost, and each device's order is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import virtual
from support.relay_history import History


@pytest.mark.parametrize("seed", range(60))
def test_what_was_accepted_is_accounted_for_and_in_order(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    virtual.run(history.run)
    history.check()


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("first", range(1_000, 3_000, 100))
def test_two_thousand_more(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        history = History(folder, seed)
        virtual.run(history.run)
        history.check()
