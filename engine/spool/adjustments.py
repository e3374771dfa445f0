"""Counts of the changes that were made on the way to Intercom, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class Adjustments:
    """What was changed on the way to Intercom, by reason: counted, and written now and then."""

    def __init__(self, written: Mapping[str, int]) -> None:
        """``written``: what earlier processes have."""
        self._before = Counter(written)
        self._counted: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    @property
    def total(self) -> Counter[str]:
        """All of it, since the spool was made."""
        return self._before + self._counted

    @property
    def since_start(self) -> Counter[str]:
        """What was counted by this process."""
        return +self._counted

    def count(self, reasons: Iterable[str]) -> None:
        """Count some."""
        self._counted.update(reasons)

    def take(self) -> Counter[str]:
        """Return what is not written yet, to be written now."""
        taken = self._counted - self._taken
        self._taken.update(taken)
        return taken

    def give_back(self, taken: Mapping[str, int]) -> None:
        """Take in that some of it was not written after all."""
        self._taken.subtract(taken)
