"""An object that stands in for another, to let one of its methods fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class StandIn:
    """Does as ``original`` does, but for the methods that a subclass has."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def in_place_of(original: T, stand_in: Callable[[T], StandIn]) -> T:
    """Return a stand-in as that for which it stands."""
    return cast("T", stand_in(original))
