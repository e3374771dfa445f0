"""Runs all benchmarks, or the named ones."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

import msgspec
import structlog

from amplitude_intercom.engine.commands.running import collect_garbage_rarely
from benchmarks import backlog, calls, cost, delivery, intake, many, mapping, pace, start
from benchmarks.report import GOALS, Result, report, show

RUNS: dict[Callable[..., list[Result]], tuple[str, ...]] = {
    intake.filtering: ("filter",),
    intake.from_file: ("intake-file",),
    intake.over_http: ("intake-http-100", "intake-http-10"),
    intake.with_a_relay: ("intake-relay",),
    mapping.mapping: ("mapping", "mapping-nested", "mapping-identify"),
    delivery.over_sockets: ("delivery", "delivery-cpu"),
    delivery.updates_over_sockets: ("delivery-updates",),
    pace.of_the_allowance: ("allowance",),
    calls.number_of_calls: ("calls",),
    calls.of_first_contacts: ("calls-there", "calls-half"),
    pace.latency: ("latency",),
    backlog.memory_and_recovery: ("memory-growth", "recovery"),
    start.starting: ("start-help", "start-ready"),
    backlog.scaling: ("scale-events", "scale-syncs", "scale-workers"),
    cost.on_disk: ("disk-bytes-500", "disk-bytes-2000"),
    cost.on_a_core: ("cpu-per-event",),
    many.many_syncs: (
        *("many-syncs-memory", "many-syncs-ready"),
        *("many-syncs-idle", "many-syncs-handles"),
    ),
}
"""The function that measures each of ``GOALS``; one may measure several."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks and print the report; return 0, or 1 if a ratio collapsed with ``--smoke``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(GOALS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few seconds: do they work, and has no ratio collapsed?",
    )
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - GOALS.keys())
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there is {', '.join(GOALS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    collect_garbage_rarely()  # as every command does; so the references have it too
    results: list[Result] = []
    for run, names in RUNS.items():
        if not given.names or set(names) & set(given.names):
            print(f"{', '.join(names)} …", file=sys.stderr)
            results += run(given.seed, smoke=given.smoke)
    found = report(given.seed, results)
    if given.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)
    collapsed = [result for result in results if GOALS[result.name].has_collapsed(result.ratio)]
    for result in collapsed if given.smoke else ():
        print(
            f"{result.name} has collapsed: {result.ratio}, its goal is {result.goal}",
            file=sys.stderr,
        )
    return 1 if given.smoke and collapsed else 0


if __name__ == "__main__":
    raise SystemExit(main())
