"""The project's papers as tests read them: code blocks, tables, links, names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAPERS: Final = (
    "README.md",
    "engine/README.md",
    "engine/REFERENCE.md",
    "transports/README.md",
    "tests/README.md",
    "benchmarks/README.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    ".github/CHANGELOG.md",
)


def text_of(paper: str) -> str:
    """Return a paper's text."""
    return (ROOT / paper).read_text(encoding="utf-8")


def block(paper: str, name: str) -> str:
    """Return the code block behind a marker."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", text_of(paper), re.DOTALL)
    assert found is not None, f"{paper}: {name}"
    return found[1]


def table(paper: str, name: str) -> list[list[str]]:
    """Return the rows of the table behind a marker, cells stripped, without its head."""
    after = text_of(paper).split(f"<!-- {name} -->", 1)[1].lstrip()
    lines = re.match(r"(?:\|.*\n?)+", after)
    assert lines is not None, f"{paper}: {name}"
    rows = lines[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def quoted(paper: str) -> Iterator[str]:
    """Yield what stands between backquotes in a paper's prose."""
    prose = re.sub(r"^```.*?^```", "", text_of(paper), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", prose)


def links(paper: str) -> Iterator[tuple[str, str]]:
    """Yield path and heading of each link to a file of this project; either may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(paper)):
        if "://" not in target:
            path, _, heading = target.partition("#")
            yield path, heading


def anchors(paper: str) -> set[str]:
    """Return the anchors of a paper's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(paper), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
