"""Print pytest's options that leave out the quick tests, one a line."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
for path in project["tool"]["pytest"]["ini_options"]["testpaths"]:
    print(f"--ignore={path}")
