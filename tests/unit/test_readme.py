"""The README's tables say what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer

from amplitude_intercom.engine import cli, errors, fitting, metrics, settings
from benchmarks.report import GOALS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """Return the rows of the table behind a marker, cells stripped, without its head."""
    after = README.split(f"<!-- {name} -->", 1)[1].lstrip()
    lines = re.match(r"(?:\|.*\n)+", after)
    assert lines is not None, name
    rows = lines[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def settings_rows(struct: Any = settings.Settings, prefix: str = "") -> list[list[str]]:
    rows = []
    for field in msgspec.structs.fields(struct):
        inner = _section(field.type)
        path = f"{prefix}{field.encode_name}"
        if inner is not None:
            rows += settings_rows(inner, f"{path}.")
        else:
            rows.append([f"`{path}`", _default(field)])
    return rows


def _section(kind: Any) -> Any:
    for candidate in (kind, *get_args(kind), *(a for t in get_args(kind) for a in get_args(t))):
        if isinstance(candidate, type) and issubclass(candidate, settings.Section):
            return candidate if candidate is not settings.Rename else None
    return None


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if field.default is msgspec.NODEFAULT:
        return "required"
    return "–" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"


def test_the_settings_table_has_every_key_with_its_default() -> None:
    assert [row[:2] for row in table("settings-table")] == settings_rows()


def test_every_setting_has_a_meaning() -> None:
    assert all(len(row) == 3 and row[2] for row in table("settings-table"))


def test_the_commands_table_has_every_command() -> None:
    group = typer.main.get_command(cli.app)
    names = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {sub}" for sub in getattr(command, "commands", {})] or [name]
    told = [re.split(r" (?=-c|\[)", row[0].strip("`"))[0] for row in table("commands-table")]
    assert sorted(told) == sorted(names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adjust-table", fitting.ADJUSTMENTS),
        ("drop-table", errors.DROP_REASONS),
        ("dead-table", errors.DEAD_REASONS),
        ("metrics-table", metrics.METRICS),
    ],
)
def test_the_table_has_every_name_with_its_meaning(name: str, said: dict[str, str]) -> None:
    assert table(name) == [[f"`{key}`", text] for key, text in said.items()]


def test_the_faults_table_has_every_file_with_what_was_measured() -> None:
    rows = table("faults-table")
    files = (Path(__file__).parents[1] / "faults").glob("test_*.py")
    assert sorted(row[1].strip("`") for row in rows) == sorted(file.name for file in files)
    assert all(re.search(r"\d", row[2]) for row in rows)


def test_the_benchmarks_table_has_every_benchmark_with_its_goal() -> None:
    sign = {"higher": "≥", "lower": "≤"}
    assert [(row[0], row[-1]) for row in table("benchmarks-table")] == [
        (f"`{name}`", f"{sign[goal.better]} {goal.ratio:g}") for name, goal in GOALS.items()
    ]
