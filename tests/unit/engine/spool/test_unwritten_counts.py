"""What is only counted is counted once: before and after it is written, and where that fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.spool import Spool
from support import simulation
from support.spools import append_of, kept, part_of

SYNC = "simulated"
DROPPED = Counter({"not_selected": 5})


async def opened(folder: Path) -> tuple[Spool, int]:
    folder.mkdir()
    (folder / "lock").touch()
    settings = simulation.settings(folder)
    spool = Spool(folder, settings, inline=True)
    return spool, (await spool.open_for([SYNC]))[SYNC].taker


async def test_a_mere_count_is_shown_before_and_after_it_is_written(
    tmp_path: Path,
) -> None:
    spool, taker = await opened(tmp_path / "data")
    spool.count_only([part_of(dropped=DROPPED, sync=SYNC)])
    assert spool.counters(SYNC, taker)["received"] == 5
    appended = spool.append(append_of(kept("ann"), sync=SYNC))
    assert spool.counters(SYNC, taker)["received"] == 6  # though nobody has told the loop yet
    await appended
    assert spool.counters(SYNC, taker)["received"] == 6
    await spool.close()


async def test_a_count_that_cannot_be_written_is_kept(tmp_path: Path) -> None:
    spool, taker = await opened(tmp_path / "data")
    spool.count_only([part_of(dropped=DROPPED, sync=SYNC)])
    (tmp_path / "data" / "lock").unlink()  # another process may have it
    with pytest.raises(SpoolError):
        await spool.append(append_of(kept("ann"), sync=SYNC))
    assert spool.counters(SYNC, taker)["received"] == 5
    with pytest.raises(SpoolError):
        await spool.with_checkpoints(lambda store: store.checkpoints.forget(taker, ["file"]))
    assert spool.counters(SYNC, taker)["received"] == 5
    assert spool.counters(SYNC, taker)["dropped:not_selected"] == 5
    await spool.close()
    with pytest.raises(SpoolError, match="closed"):
        await spool.do(lambda store: None)


async def test_the_checkpoint_of_a_batch_that_only_counts_is_there_at_once(tmp_path: Path) -> None:
    """Whoever asks whether it has arrived would else send it again."""
    spool, taker = await opened(tmp_path / "data")
    part = part_of(dropped=DROPPED, sync=SYNC)
    part.checkpoints = {"file": "9"}
    spool.count_only([part])
    part_of_spool = (await spool.open_for([SYNC]))[SYNC]
    assert await part_of_spool.checkpoints() == {"file": "9"}
    await part_of_spool.forget_checkpoints(["file"], {"other": "1"})
    assert await part_of_spool.checkpoints() == {"other": "1"}
    assert spool.counters(SYNC, taker)["received"] == 5
    await spool.close()
