"""Goals, results and their table."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

VERSIONS = ("aiohttp", "anyio", "msgspec", "aiolimiter")
"""Packages with a version in the report."""

Figure = TypeVar("Figure")


class Goal(msgspec.Struct, frozen=True):
    """The goal of a ratio, and the bound from which on it counts as collapsed.

    The bound is half as good as the goal, unless ``collapsed`` says otherwise: for a goal that is
    not reached, and for a ratio that is worse in the smoke form, because a few events do not repay
    the start of the workers.
    """

    ratio: float
    better: Literal["higher", "lower"]
    collapsed: float | None = None

    def is_met(self, ratio: float) -> bool:
        """Return whether a ratio reaches the goal."""
        return self._is_as_good(ratio, self.ratio)

    def has_collapsed(self, ratio: float) -> bool:
        """Return whether a ratio is so bad that something is broken."""
        half = self.ratio / 2 if self.better == "higher" else self.ratio * 2
        return not self._is_as_good(ratio, half if self.collapsed is None else self.collapsed)

    def _is_as_good(self, ratio: float, bound: float) -> bool:
        return ratio >= bound if self.better == "higher" else ratio <= bound


GOALS = {
    "filter": Goal(0.7, "higher", 0.15),
    "intake-file": Goal(1.5, "higher", 0.4),
    "intake-http-100": Goal(0.45, "higher", 0.12),
    "intake-http-10": Goal(0.4, "higher"),
    "intake-relay": Goal(0.77, "higher"),
    "mapping": Goal(0.4, "higher"),
    "mapping-nested": Goal(0.28, "higher", 0.1),
    "mapping-identify": Goal(0.2, "higher"),
    "delivery": Goal(0.45, "higher", 0.04),
    "delivery-cpu": Goal(2.2, "lower", 10.0),
    "delivery-updates": Goal(0.35, "higher", 0.04),
    "allowance": Goal(0.99, "higher"),
    "calls": Goal(1.0, "lower"),
    "calls-there": Goal(1.01, "lower", 1.2),
    "calls-half": Goal(1.0, "lower"),
    "latency": Goal(1.0, "lower"),
    "memory-growth": Goal(1.05, "lower"),
    "recovery": Goal(1.0, "lower"),
    "start-help": Goal(2.0, "lower"),
    "start-ready": Goal(3.0, "lower"),
    "scale-events": Goal(1.3, "lower"),
    "scale-syncs": Goal(1.3, "lower", 5.0),
    "scale-workers": Goal(1.3, "lower", 30.0),
    "disk-bytes-500": Goal(1.0, "lower"),
    "disk-bytes-2000": Goal(1.0, "lower"),
    "cpu-per-event": Goal(1.0, "lower", 4.0),
    "many-syncs-memory": Goal(1.0, "lower"),
    "many-syncs-ready": Goal(1.0, "lower"),
    "many-syncs-idle": Goal(1.0, "lower", 5.0),
    "many-syncs-handles": Goal(1.0, "lower"),
}
"""The goal of every benchmark, in the order of the table."""


class Result(msgspec.Struct, frozen=True):
    """One figure. ``ratio`` is ``measured`` to ``reference``, both in ``unit``."""

    name: str
    ratio: float
    goal: float
    better: str
    measured: float
    reference: float
    unit: str
    note: str = ""


def result(name: str, measured: float, reference: float, unit: str, note: str = "") -> Result:
    """Return the result of one measurement."""
    return result_of_rounds(name, [(measured, reference)], unit, note)


def result_of_rounds(
    name: str, rounds: list[tuple[float, float]], unit: str, note: str = ""
) -> Result:
    """Return the result of paired measurements, with the median of their ratios.

    ``measured`` and ``reference`` are medians of their own, so ``ratio`` may differ from theirs.
    """
    goal = GOALS[name]
    ratio = statistics.median(measured / reference for measured, reference in rounds)
    return Result(
        name,
        round(ratio, 4),
        goal.ratio,
        goal.better,
        round(statistics.median(measured for measured, _ in rounds), 3),
        round(statistics.median(reference for _, reference in rounds), 3),
        unit,
        note,
    )


def in_turns(
    rounds: int, measured: Callable[[], Figure], reference: Callable[[], Figure]
) -> list[tuple[Figure, Figure]]:
    """Return ``rounds`` pairs of figures, taken in turns, so that a busy moment slows both."""
    found = []
    for number in range(rounds):
        if number % 2:
            mine = measured()
            found.append((mine, reference()))
        else:
            theirs = reference()
            found.append((measured(), theirs))
    return found


class Report(msgspec.Struct, frozen=True):
    """The results of a run, with machine, versions and seed."""

    machine: dict[str, Any]
    versions: dict[str, str]
    seed: int
    results: list[Result]


def report(seed: int, results: list[Result]) -> Report:
    """Return the report of a run, results in the order of ``GOALS``."""
    order = list(GOALS)
    return Report(
        {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        },
        {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in VERSIONS},
        },
        seed,
        sorted(results, key=lambda result: order.index(result.name)),
    )


def show(found: Report) -> None:
    """Print a report as a table, missed goals in red."""
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    table = Table(title=f"{found.machine['cores']} cores, {versions}, seed {found.seed}")
    for column in ("benchmark", "ratio", "goal", "measured", "reference", "unit", ""):
        table.add_column(column)
    for result in found.results:
        sign = "≥" if result.better == "higher" else "≤"
        met = GOALS[result.name].is_met(result.ratio)
        table.add_row(
            result.name,
            f"{result.ratio:.3f}" if met else f"[red]{result.ratio:.3f}[/red]",
            f"{sign} {result.goal:g}",
            f"{result.measured:,.3g}" if result.measured < 1_000 else f"{result.measured:,.0f}",
            f"{result.reference:,.3g}" if result.reference < 1_000 else f"{result.reference:,.0f}",
            result.unit,
            result.note,
        )
    Console(width=150).print(table)
