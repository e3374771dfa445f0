"""Counts of adjustments, the changes on the way to Intercom, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class Adjustments:
    """The counts of adjustments by reason, written to the spool from time to time."""

    def __init__(self, written: Mapping[str, int]) -> None:
        """``written`` has the counts of earlier processes."""
        self._before = Counter(written)
        self._counted: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    @property
    def total(self) -> Counter[str]:
        """The counts since the spool was made."""
        return self._before + self._counted

    @property
    def since_start(self) -> Counter[str]:
        """The counts of this process."""
        return +self._counted

    def count(self, reasons: Iterable[str]) -> None:
        """Count adjustments."""
        self._counted.update(reasons)

    def take(self) -> Counter[str]:
        """Return the counts that are not written yet, for the caller to write."""
        taken = self._counted - self._taken
        self._taken.update(taken)
        return taken

    def give_back(self, taken: Mapping[str, int]) -> None:
        """Note that counts from ``take`` were not written."""
        self._taken.subtract(taken)
