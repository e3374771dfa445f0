"""The version of this program."""

from __future__ import annotations

from functools import cache


@cache
def own_version() -> str:
    """Return the version that is installed; ``0``: the program is used without having been."""
    # Here: most commands ask for no version, and the import takes them some milliseconds.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("amplitude-intercom")
    except PackageNotFoundError:
        return "0"
