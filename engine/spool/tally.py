"""What a delivery counts between two commits: adjustments and calls, by name.

They are written with the outcomes of their time, so that a kill loses both or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from amplitude_intercom.engine.spool.accounts import under

ADJUSTED: Final = "adjusted:"
"""Begins the names of adjustments; their reason follows."""

CALL: Final = "call:"
"""Begins the names of calls; their endpoint and status follow (0: no answer)."""


class TakerTally:
    """The counts of one taker, written to the spool from time to time."""

    def __init__(self, adjusted: Mapping[str, int]) -> None:
        """``adjusted``: adjustments by reason, as earlier processes have counted them."""
        self._before = Counter(adjusted)
        self._adjusted: Counter[str] = Counter()
        self._unwritten: Counter[str] = Counter()

    @property
    def adjusted(self) -> Counter[str]:
        """The adjustments since the spool was made, by reason."""
        return self._before + self._adjusted

    @property
    def adjusted_since_start(self) -> Counter[str]:
        """The adjustments of this process, by reason."""
        return +self._adjusted

    def adjust(self, reasons: Iterable[str]) -> None:
        """Count adjustments."""
        for reason in reasons:
            self._adjusted[reason] += 1
            self._unwritten[ADJUSTED + reason] += 1

    def call(self, endpoint: str, status: int) -> None:
        """Count a call that was made."""
        self._unwritten[f"{CALL}{endpoint}:{status}"] += 1

    def take(self) -> Counter[str]:
        """Return the counts that are not written yet, for the caller to write."""
        taken, self._unwritten = self._unwritten, Counter()
        return taken

    def take_calls(self) -> Counter[str]:
        """Return the calls among them alone.

        Adjustments wait for a commit that settles: with another one they would count twice after a
        kill.
        """
        taken = Counter({name: n for name, n in self._unwritten.items() if name.startswith(CALL)})
        self._unwritten -= taken
        return taken

    def give_back(self, taken: Mapping[str, int]) -> None:
        """Take counts back that were not written."""
        self._unwritten.update(taken)


def calls_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the calls among counts, by endpoint and status (``POST /events:202``)."""
    return under(counts, CALL)
