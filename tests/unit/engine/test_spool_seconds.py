"""Seconds of events: no two different ones share one, whether claimed together or singly."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spool.schema import connect
from engine.spool.seconds import Claim, Seconds

FEW = st.tuples(
    st.sampled_from(["ann", "bob"]), st.sampled_from(["A", "a", "B"]), st.integers(1, 3)
)


def seconds(folder: str) -> Seconds:
    return Seconds(connect(Path(folder) / "s.db"), window_ms=1_000)


@given(st.lists(st.lists(FEW, max_size=8), max_size=4))
@settings(max_examples=60, deadline=None)
def test_claimed_together_they_have_the_seconds_that_they_have_one_after_the_other(
    batches: list[list[tuple[str, str, int]]],
) -> None:
    number = 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        together, singly = seconds(one), seconds(other)
        everything = []
        for batch in batches:
            claims = [Claim(number + n, *wish) for n, wish in enumerate(batch, 1)]
            number += len(claims)
            everything += claims
            mine = together.claim(claims, 1)
            assert mine == [second for claim in claims for second in singly.claim([claim], 1)]
        again = together.claim(everything, 2)
        assert again == [second for claim in everything for second in singly.claim([claim], 2)]
        taken = {
            (claim.user_key, claim.name.lower(), second)
            for claim, second in zip(everything, again, strict=True)
        }
        assert len(taken) == len(everything)
