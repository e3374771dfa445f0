"""Arrays as one text: bounded, and noted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from amplitude_intercom.engine.rules.fitting import MAX_ELEMENTS, join


def test_an_array_says_how_many_it_joined() -> None:
    assert joined(["a", "b"]) == ("a, b", "an array of 2, joined")
    assert joined(["a", {}, "b"]) == ("a, b", "an array of 3, 2 of them joined")


def test_an_array_says_that_it_was_cut_and_how_many_of_it_were_begun() -> None:
    cut_text = "an array of 3, 2 of them joined, cut to 255 characters"
    assert joined(["x" * 254, "y", "z"]) == ("x" * 254 + ",", cut_text)
    assert joined(["x" * 255]) == ("x" * 255, "an array of 1, joined")
    assert joined(["x" * 255, {}]) == ("x" * 255, "an array of 2, 1 of them joined")
    assert joined([{}] * MAX_ELEMENTS + ["a"]) == (
        None,
        f"an array without single values in its first {MAX_ELEMENTS}, left out",
    )
    assert joined(["a"] + [{}] * MAX_ELEMENTS + ["b"]) == (
        "a",
        f"an array of {MAX_ELEMENTS + 2}, 1 of them joined",
    )


def joined(values: list[Any]) -> tuple[Any, str]:
    fitted, note = join(values)
    assert note is not None
    return fitted, note.what


class Counted(list[Any]):
    """A list that counts how many of its elements were read."""

    read = 0

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self.read += 1
            yield value


@pytest.mark.parametrize("value", ["ab", 12, 1.5, True, None, {"a": 1}, [1], "", "x" * 300])
def test_an_array_is_read_up_to_a_bound(value: Any) -> None:
    many = Counted([value] * 100_000)
    join(many)
    assert many.read <= MAX_ELEMENTS
