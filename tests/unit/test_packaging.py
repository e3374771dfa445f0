"""What is built holds every package: an editable install does not notice one that is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_of_code_is_a_package_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    built = set(project["tool"]["setuptools"]["packages"])
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("engine", "transports")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert built == {f"amplitude_intercom.{folder}" for folder in folders}
