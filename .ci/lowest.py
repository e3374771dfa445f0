"""Print the lowest declared version of each dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
for dependency in project["project"]["dependencies"]:
    found = re.match(r"([A-Za-z0-9-]+)>=([0-9.]+)", dependency)
    if found is None:
        raise SystemExit(f"no lowest version is declared: {dependency}")
    print(f"{found[1]}=={found[2]}")
