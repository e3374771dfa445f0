"""The papers say what the code says: generated tables, and every name in them exists."""

from __future__ import annotations

import re
import signal
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from amplitude_intercom.engine import cli
from amplitude_intercom.engine.commands import running
from amplitude_intercom.engine.console.api_v1.jobs import Filter
from amplitude_intercom.engine.settings_meanings import MEANINGS
from benchmarks.report import GOALS
from support import reference_tables
from support.papers import PAPERS, ROOT, anchors, links, quoted, table, text_of

MAX_README_BYTES = 10_000
MODULE = re.compile(r"(?:[\w.-]+/)*\w+\.(?:py|c)")
TEST = re.compile(r"(?P<path>(?:\w+/)*test_\w+\.py)(?:::(?P<name>test_\w+))?")
SETTING = re.compile(r"(?:http|admin|spool|forward|log|relay|export|sync)(?:\.[a-z_]+)+")

papers = pytest.mark.parametrize("paper", PAPERS)


def files_called(name: str) -> list[Path]:
    """Return the files of this project that end as a paper calls them."""
    folders = ("engine", "transports", "tests", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob(Path(name).name)]
    return [path for path in files if f"/{path.relative_to(ROOT).as_posix()}".endswith(f"/{name}")]


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").encode()) <= MAX_README_BYTES


def test_the_reference_s_tables_are_those_of_the_code() -> None:
    paper = reference_tables.REFERENCE.read_text(encoding="utf-8")
    assert reference_tables.rewritten(paper) == paper, "python tests/support/reference_tables.py"


def test_the_table_of_exit_codes_has_every_code() -> None:
    told = {int(row[0]) for row in table("engine/REFERENCE.md", "exit-codes")}
    of_signals = {running.OF_SIGNAL + number for number in (signal.SIGTERM, signal.SIGHUP)}
    plain = {running.OK, running.FAILED, running.USAGE, running.DEAD_LETTERED, running.IN_USE}
    assert told == plain | of_signals | {running.INTERRUPTED, running.READER_GONE}


def test_the_table_of_conditions_has_every_field() -> None:
    cells = " ".join(row[0] for row in table("engine/REFERENCE.md", "query-table"))
    told = set(re.findall(r"`(\w+)`", cells))
    assert told == {field.encode_name for field in msgspec.structs.fields(Filter)}


def test_the_faults_table_has_every_file_with_its_measurement() -> None:
    rows = table("tests/README.md", "faults-table")
    files = (ROOT / "tests" / "faults").glob("test_*.py")
    assert sorted(row[1].strip("`") for row in rows) == sorted(file.name for file in files)
    assert all(re.search(r"\d", row[2]) for row in rows)


def test_the_benchmarks_table_has_every_benchmark_with_its_goal() -> None:
    sign = {"higher": "≥", "lower": "≤"}
    rows = table("benchmarks/README.md", "benchmarks-table")
    assert [(row[0], row[-1]) for row in rows] == [
        (f"`{name}`", f"{sign[goal.better]} {goal.ratio:g}") for name, goal in GOALS.items()
    ]


@pytest.mark.parametrize(
    ("paper", "extras"), [("engine/README.md", []), ("tests/README.md", ["test", "test-all"])]
)
def test_every_dependency_is_named_with_its_use(paper: str, extras: list[str]) -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    lists = [project["optional-dependencies"][extra] for extra in extras]
    needed = {
        re.split(r"[<>=\[]", one)[0] for some in lists or [project["dependencies"]] for one in some
    }
    assert needed - {"amplitude-intercom"} <= set(re.findall(r"\*\*([\w-]+)\*\*", text_of(paper)))


def test_the_container_has_a_python_that_is_tested() -> None:
    images = re.findall(r"python:(\d+\.\d+)-", text_of("engine/deploy/Containerfile"))
    tested = re.findall(r"Python (\d+\.\d+) is tested", text_of(".github/CONTRIBUTING.md"))
    assert images
    assert set(images) <= set(tested)


def test_every_goal_that_is_missed_is_said_with_its_ratio() -> None:
    measured = {
        row[0]: (row[-2], row[-1]) for row in table("benchmarks/README.md", "benchmarks-table")
    }
    missed = {
        name: (ratio, goal)
        for name, (ratio, goal) in measured.items()
        if not GOALS[name.strip("`")].is_met(float(ratio))
    }
    said = table("benchmarks/README.md", "missed-table")
    assert {row[0]: (row[1], row[2]) for row in said} == missed
    assert all(row[3] for row in said)


def test_the_table_of_test_folders_has_every_folder() -> None:
    told = set(re.findall(r"^\| `(\w+)/` \|", text_of("tests/README.md"), re.MULTILINE))
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert told == {name for name in folders if not name.startswith(("_", "."))}


def test_the_map_of_the_code_has_every_folder() -> None:
    engine = ROOT / "engine"
    folders = {path.parent.relative_to(engine) for path in engine.rglob("__init__.py")}
    told = set(quoted("engine/README.md"))
    assert {f"{folder.as_posix()}/" for folder in folders if folder.name} <= told


def test_the_map_of_the_code_has_every_module_in_the_order_of_the_layers() -> None:
    """Else a new module is nowhere, and the map says otherwise than the import contract."""
    engine = ROOT / "engine"
    there = {path.name for path in engine.glob("*.py")} - {"__init__.py", "__main__.py"}
    there |= {f"{path.parent.name}/" for path in engine.glob("*/__init__.py")}
    cells = " ".join(row[1] for row in table("engine/README.md", "engine-map"))
    told = re.findall(r"`(\w+(?:\.py|/))`", cells)
    assert sorted(told) == sorted(there)
    linter = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]
    [layers] = [
        contract["layers"]
        for contract in linter["contracts"]
        if contract.get("containers") == ["amplitude_intercom.engine"]
    ]
    rank = {name: n for n, layer in enumerate(layers) for name in layer.split(" | ")}
    ranks = [rank[re.sub(r"\.py$|/$", "", name)] for name in told]
    assert ranks == sorted(ranks)


@papers
def test_every_link_leads_somewhere(paper: str) -> None:
    for path, heading in links(paper):
        target = (ROOT / paper).parent / path if path else ROOT / paper
        assert target.exists(), path
        if heading:
            assert heading in anchors(target.resolve().relative_to(ROOT).as_posix()), heading


@papers
def test_every_file_that_is_named_exists(paper: str) -> None:
    named = [word for word in quoted(paper) if MODULE.fullmatch(word)]
    assert [word for word in named if not files_called(word)] == []


@papers
def test_every_test_that_is_named_exists(paper: str) -> None:
    for path, name in TEST.findall(text_of(paper)):
        found = files_called(path)
        assert found, path
        assert not name or f"def {name}(" in found[0].read_text(encoding="utf-8"), name


@papers
def test_every_setting_that_is_named_exists(paper: str) -> None:
    named = [word for word in quoted(paper) if SETTING.fullmatch(word)]
    sections = {path.rpartition(".")[0] for path in MEANINGS}
    unknown = [word for word in named if word not in MEANINGS and word not in sections]
    assert [word for word in unknown if not word.endswith((".db", ".py"))] == []


@papers
def test_every_command_that_is_named_exists(paper: str) -> None:
    root: Any = typer.main.get_command(cli.app)
    named = re.findall(r"amplitude-intercom (?!-|amplitude)([a-z][a-z-]*)\b(?!\.)", text_of(paper))
    assert set(named) <= set(root.commands)
