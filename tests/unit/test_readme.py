"""The README's tables say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from amplitude_intercom.engine import cli
from benchmarks.report import GOALS
from support import readme_tables

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """Return the rows of the table behind a marker, cells stripped, without its head."""
    after = README.split(f"<!-- {name} -->", 1)[1].lstrip()
    lines = re.match(r"(?:\|.*\n)+", after)
    assert lines is not None, name
    rows = lines[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_reference_tables_are_those_of_the_code() -> None:
    assert readme_tables.rewritten(README) == README, "python tests/support/readme_tables.py"


def test_the_commands_table_has_every_command() -> None:
    group = typer.main.get_command(cli.app)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {sub}" for sub in getattr(command, "commands", {})] or [name]
    told = [re.split(r" (?=-c|\[)", row[0].strip("`"))[0] for row in table("commands-table")]
    assert sorted(told) == sorted(names)


def test_the_faults_table_has_every_file_with_a_measurement() -> None:
    rows = table("faults-table")
    files = (Path(__file__).parents[1] / "faults").glob("test_*.py")
    assert sorted(row[1].strip("`") for row in rows) == sorted(file.name for file in files)
    assert all(re.search(r"\d", row[2]) for row in rows)


def test_the_benchmarks_table_has_every_benchmark_with_its_goal() -> None:
    sign = {"higher": "≥", "lower": "≤"}
    assert [(row[0], row[-1]) for row in table("benchmarks-table")] == [
        (f"`{name}`", f"{sign[goal.better]} {goal.ratio:g}") for name, goal in GOALS.items()
    ]
