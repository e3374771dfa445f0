"""The public names of the engine: what an embedding program has to catch is among them."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest

from amplitude_intercom import engine
from amplitude_intercom.engine import Engine, from_table, load

RAISED = re.compile(r"^\s+(\w+): ", re.MULTILINE)


def documented() -> set[str]:
    """Return the errors that the docstrings of the public functions and methods name."""
    methods = [member for name, member in vars(Engine).items() if name[0] != "_"]
    found: set[str] = set()
    for documented in [Engine, from_table, load, *methods]:
        _, raises, behind = (inspect.getdoc(documented) or "").partition("Raises")
        if raises:
            found.update(RAISED.findall(behind))
    return found


def test_every_error_that_is_documented_can_be_imported_from_the_engine() -> None:
    assert {"BadEvents", "Refused", "SettingsError", "SpoolError"} <= documented()
    assert documented() <= set(engine.__all__)


@pytest.mark.parametrize("name", engine.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(engine, name).__name__ == name


def test_each_public_name_is_taken_from_where_it_is_defined() -> None:
    assert list(engine._HOMES) == engine.__all__
    homes = {name: import_module(home, engine.__name__) for name, home in engine._HOMES.items()}
    assert all(getattr(engine, name).__module__.startswith(m.__name__) for name, m in homes.items())
