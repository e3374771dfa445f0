"""How long an export that does not come is waited for, in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from amplitude_intercom.engine.commands.exporting import LONGEST_WAIT_S, Patience
from amplitude_intercom.transports.amplitude_exports import ExportDelayed, Span, parse_hour
from support.virtual import in_virtual_time

HOUR = parse_hour("2024-05-14T09")


@in_virtual_time
async def _waits(
    count: int, most_s: float | None = None, asked_s: float | None = None
) -> list[float]:
    """Return when questions are asked that are not answered, until one wait would be too long."""

    patience, asked = Patience(Span(HOUR, HOUR), most_s), [0.0]
    for _ in range(count):
        try:
            await patience.wait(ExportDelayed("it answers 503"), asked_s)
        except ExportDelayed:
            break
        asked.append(asyncio.get_running_loop().time())
    return asked


def test_pauses_grow_to_a_minute_and_are_said_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = _waits(60)
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[0] <= 1
    assert LONGEST_WAIT_S / 2 <= pauses[-1] <= LONGEST_WAIT_S
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "2024-05-14T09: no export yet: it answers 503; it is asked again; --max-wait ends this"
    )
    assert asked[-1] / 120 - 2 <= len(lines) <= asked[-1] / 60 + 1


def test_an_answer_that_says_when_to_come_again_is_obeyed() -> None:
    assert _waits(2, asked_s=100) == pytest.approx([0, 100, 200], abs=0.1)


def test_the_wait_has_the_bound_that_was_asked_for() -> None:
    assert _waits(60, most_s=0) == [0]
    assert 30 < _waits(60, most_s=100)[-1] <= 100
    assert _waits(60, most_s=100, asked_s=101) == [0]
