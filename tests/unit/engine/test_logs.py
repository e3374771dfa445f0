"""A line of the log is bounded, readable by machines and harmless to terminals; it never waits."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine import log_lines, logs

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=3_000)
    | st.builds(object),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(), inner, max_size=30),
    max_leaves=40,
)


def entry_of(line: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(line)
    return entry


@given(st.dictionaries(st.text(max_size=80), VALUES, max_size=60), st.text())
def test_a_line_is_bounded_json_in_ascii_with_any_values(
    values: dict[str, Any], event: str
) -> None:
    line = log_lines.render({**values, "event": event}, log_lines.json_line)
    assert len(line) <= log_lines.MAX_LINE_BYTES
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert "event" in entry_of(line)


@pytest.mark.parametrize("size", [1_000_000, 10_000, 1_000])
def test_a_line_too_long_is_cut_and_says_so(size: int) -> None:
    line = log_lines.render({f"k{n}": "v" * size for n in range(100)}, log_lines.json_line)
    assert len(line) <= log_lines.MAX_LINE_BYTES
    assert b"more" in line


def test_the_end_of_a_long_traceback_stays() -> None:
    line = log_lines.render({"exception": "x" * 100_000 + "ValueError: no"}, log_lines.json_line)
    assert entry_of(line)["exception"].endswith("ValueError: no")


HUMAN = log_lines.HumanLine(colors=False, encoding="utf-8")


@pytest.mark.parametrize("evil", ["\x1b[31m", "\x9b31m", "\x07", "\r", "\u202e", "\x00", "\ud800"])
@pytest.mark.parametrize("where", ["event", "user", "exception", "key"])
def test_no_value_controls_a_terminal(evil: str, where: str) -> None:
    entry = {"event": "hello", where: f"a{evil}b"} if where != "key" else {"event": "h", evil: 1}
    line = log_lines.render(entry, HUMAN)
    assert evil.encode(errors="surrogatepass") not in line


def test_people_with_an_ascii_terminal_see_other_characters_escaped() -> None:
    line = log_lines.render(
        {"event": "hello", "user": "zoë"}, log_lines.HumanLine(colors=False, encoding="ascii")
    )
    assert b"zo\\xeb" in line


# --- rates ------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_of_a_kind_so_many_a_second_are_written_and_the_others_counted() -> None:
    clock = Clock()
    rates = logs.Rates(clock)
    taken = [rates.takes("dead letter") for _ in range(logs.KIND_LINES_PER_S + 7)]
    assert taken == [True] * logs.KIND_LINES_PER_S + [False] * 7
    assert rates.takes("another")
    assert rates.take_overdue() == {}  # this second is not over
    clock.now_s = 1.0
    assert rates.take_overdue() == {"dead letter": 7}
    assert rates.take_overdue() == {}
    assert rates.takes("dead letter")


def test_kinds_without_end_are_one_kind() -> None:
    rates = logs.Rates(Clock())
    taken = sum(rates.takes(f"kind {n}") for n in range(5 * logs.MAX_KINDS))
    assert taken <= logs.MAX_KINDS + logs.KIND_LINES_PER_S


# --- the writing thread -----------------------------------------------------------------


def raising(error: Exception) -> Callable[[], int]:
    def descriptor_of() -> int:
        raise error

    return descriptor_of


def test_lines_are_written_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    writer = logs.LineWriter(lambda: writing)
    lines = [b"%d %s\n" % (n, b"x" * (n * 37 % 900)) for n in range(100)]
    for line in lines:
        writer.put(line)
        if line.startswith(b"50 "):
            assert writer.flush(10)
    assert writer.flush(10)
    os.close(writing)
    with os.fdopen(reading, "rb") as read:
        assert read.read() == b"".join(lines)
    assert writer.lost == 0


@pytest.mark.parametrize("error", [ValueError("closed"), OSError(28, "full"), OSError(32, "gone")])
def test_lines_that_cannot_be_written_are_counted(error: Exception) -> None:
    writer = logs.LineWriter(raising(error))
    for _ in range(10):
        writer.put(b"line\n")
    assert writer.flush(10)
    assert writer.lost == 10


def test_while_nobody_reads_lines_wait_up_to_a_bound_and_flush_gives_up() -> None:
    reading, writing = os.pipe()
    writer = logs.LineWriter(lambda: writing)
    line = b"x" * 1_000 + b"\n"
    count = 3 * logs.MAX_LINES
    for _ in range(count):
        writer.put(line)
    assert not writer.flush(0)
    assert logs.MAX_LINES < writer.lost < count
    kept = count - writer.lost
    with os.fdopen(reading, "rb") as read:
        assert [read.readline() for _ in range(kept)] == [line] * kept
        assert writer.flush(10)
        os.close(writing)
        assert read.read() == b""


def test_a_torn_line_is_ended_before_the_next_one() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    broken = threading.Event()

    def descriptor_of() -> int:
        if broken.is_set():
            raise OSError(28, "full")
        return writing

    writer = logs.LineWriter(descriptor_of)
    writer._torn = True
    writer.put(b"next\n")
    assert writer.flush(10)
    assert os.read(reading, 100) == b"\nnext\n"
    broken.set()
    writer.put(b"lost\n")
    assert writer.flush(10)
    broken.clear()
    writer.put(b"after\n")
    assert writer.flush(10)
    assert (os.read(reading, 100), writer.lost) == (b"after\n", 1)
    os.close(reading)
    os.close(writing)
