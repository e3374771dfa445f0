"""Users that Intercom does not know, or by another id: how long that is believed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.spool.known_contacts import ContactKey

MOST_MISSING: Final = 10_000
"""Users that are remembered of either kind; the oldest goes first, and is asked for again."""

MERGED_S: Final = 600.0
"""How long it is believed that a user goes by the name of the one that it was merged into."""


class _Absent(NamedTuple):
    failure: Failure
    answers: int
    until_s: float


class MissingContacts:
    """Contacts that are not there, or cannot be had: Intercom's last answer, the number of such
    answers, and until when it is believed (the loop's clock)."""

    def __init__(self) -> None:
        self._found: OrderedDict[ContactKey, _Absent] = OrderedDict()

    def of(self, key: ContactKey) -> Failure | None:
        """Return why a contact is not there, as far as that is believed now."""
        found = self._found.get(key)
        return found.failure if found is not None and loop_time_s() < found.until_s else None

    def note(self, key: ContactKey, failure: Failure, wait_s: Callable[[int], float]) -> None:
        """Take in that a contact is not there; ``wait_s`` returns for how long that is believed,
        after so many answers that said so."""
        before = self._found.pop(key, None)
        answers = before.answers + 1 if before else 1
        self._found[key] = _Absent(failure, answers, loop_time_s() + wait_s(answers))
        if len(self._found) > MOST_MISSING:
            self._found.popitem(last=False)

    def forget(self, key: ContactKey) -> None:
        """Take in that a contact is there, or may be by now."""
        self._found.pop(key, None)


class MergedUsers:
    """Users that were merged into others: Intercom takes their events under the others' names."""

    def __init__(self) -> None:
        self._found: OrderedDict[ContactKey, tuple[str, float]] = OrderedDict()

    def of(self, key: ContactKey) -> str:
        """Return the identifier of the user that one was merged into, as far as that is believed
        now; else an empty text."""
        heir, until_s = self._found.get(key, ("", 0.0))
        return heir if loop_time_s() < until_s else ""

    def note(self, key: ContactKey, heir: str) -> None:
        """Take in that Intercom knows a user as this one alone."""
        self.forget(key)
        self._found[key] = (heir, loop_time_s() + MERGED_S)
        if len(self._found) > MOST_MISSING:
            self._found.popitem(last=False)

    def forget(self, key: ContactKey) -> None:
        """Take in that a user has a contact of its own, or may have."""
        self._found.pop(key, None)
