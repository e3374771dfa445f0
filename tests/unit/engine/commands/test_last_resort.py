"""The end of a process that cannot end by itself."""

from __future__ import annotations

import queue
import re
import threading

from structlog.testing import capture_logs

from amplitude_intercom.engine.commands.last_resort import LastResort, hanging
from amplitude_intercom.engine.delivery.health import Circuit

IN_TIME_S = 10.0


def test_it_ends_the_process_at_the_earliest_instant_that_was_asked_for() -> None:
    ends: queue.SimpleQueue[int] = queue.SimpleQueue()
    with capture_logs() as lines:
        last_resort = LastResort(ends.put)
        last_resort.arm(3_600.0)
        last_resort.arm(0.0)
        last_resort.arm(7_200.0)
        assert ends.get(timeout=IN_TIME_S) == 1
    [line] = lines
    assert (line["log_level"], "hangs" in line) == ("error", True)


def test_it_says_where_threads_are_and_leaves_out_those_that_rest() -> None:
    let_go, resting, is_there = threading.Event(), threading.Event(), threading.Event()

    def hang(failures: int) -> float:
        is_there.set()
        let_go.wait()
        return 0.0

    circuit = Circuit(hang)
    threads = [
        threading.Thread(target=circuit.open, args=[0.0], name="hanging", daemon=True),
        threading.Thread(target=resting.wait, name="resting", daemon=True),
    ]
    for thread in threads:
        thread.start()
    assert is_there.wait(IN_TIME_S)
    found = hanging()
    let_go.set()
    resting.set()
    for thread in threads:
        thread.join(IN_TIME_S)
    assert "resting" not in found
    assert re.fullmatch(r"health\.py:\d+ probe_failed", found["hanging"])
