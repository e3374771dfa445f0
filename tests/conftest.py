"""Long forms of a proof run only when asked for (``-m long``); in CI, properties repeat themselves.

Everywhere else hypothesis looks for new examples at every run.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" in config.getoption("markexpr"):
        return
    chosen = [item for item in items if item.get_closest_marker("long") is None]
    config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
    items[:] = chosen
