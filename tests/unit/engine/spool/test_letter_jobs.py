"""Jobs about dead letters are about those that their requester saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SelectionEnded
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.job_requests import Chosen, ask_once, end_of_selection
from amplitude_intercom.engine.spool.jobs import JobKind, JobRow
from amplitude_intercom.engine.spool.letters import START, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.table_reads import matching_up_to
from support.spools import OneSync, kept, opened

REFUSED = DeadLetterQuery(reason="refused")
EVERY = DeadLetterQuery(every=True)
NOW_MS = 1_700_000_000_000


class Buried:
    """A sync with records in order of acceptance, of which some are dead letters."""

    def __init__(self, path: Path, count: int) -> None:
        self.sync = OneSync(opened(path))
        self.sync.append(*[kept(f"user-{n}") for n in range(count)])
        self._records = self.sync.load().records
        self.ids = [record.id for record in self._records]

    def bury(self, place: int, at_ms: int) -> None:
        """Make a dead letter of the record at a place."""
        self.sync.store.begin()
        self.sync.settling.bury(self._records[place], Failure(DeadReason.REFUSED), at_ms)
        self.sync.store.commit()

    def remove(self, place: int) -> None:
        """Take a letter away, as a replay of it alone does."""
        self.sync.store.begin()
        self.sync.store.letters.remove(self.sync.taker, [self.ids[place]])
        self.sync.store.accounts.count_dead(self.sync.taker, "refused", -1)
        self.sync.store.commit()

    def count(self, up_to_id: int, query: DeadLetterQuery = REFUSED) -> int:
        """Return the number of letters up to one of them."""
        store, taker = self.sync.store, self.sync.taker
        return matching_up_to(store, taker, query, end_of_selection(store, taker, up_to_id))

    def asked(self, up_to_id: int, query: DeadLetterQuery = REFUSED) -> list[int]:
        """Ask for a job; return the letters that its slices will settle."""
        chosen = Chosen(query, up_to_id, 0)
        self.sync.store.begin()
        job, _ = ask_once(
            self.sync.store,
            JobKind.DISCARD,
            self.sync.taker,
            chosen,
            None,
            who="ann",
            why="",
            now_ms=NOW_MS,
        )
        self.sync.store.commit()
        assert job is not None
        return self._meant(job)

    def _meant(self, job: JobRow) -> list[int]:
        assert isinstance(job.query, DeadLetterQuery)
        up_to = Position.read(job.up_to)
        page, _ = self.sync.store.letters.page(self.sync.taker, job.query, START, 100, up_to=up_to)
        return [letter.id for letter in page if letter.id <= up_to.id]


def test_a_letter_that_fails_later_is_left_alone_even_with_a_lower_id(tmp_path: Path) -> None:
    """One of the letters that were seen goes and another comes: their number is the same."""
    buried = Buried(tmp_path / "spool.db", 4)
    buried.bury(1, 100)
    buried.bury(3, 200)
    assert buried.count(buried.ids[3]) == 2
    buried.bury(0, 300)  # accepted first, failed last
    buried.remove(1)
    assert buried.count(buried.ids[3]) == 1
    assert buried.asked(buried.ids[3]) == [buried.ids[3]]


def test_a_letter_that_failed_earlier_is_meant_even_with_a_higher_id(tmp_path: Path) -> None:
    buried = Buried(tmp_path / "spool.db", 4)
    buried.bury(0, 200)
    buried.bury(3, 100)
    assert buried.count(buried.ids[0]) == 2
    assert buried.asked(buried.ids[0]) == [buried.ids[3], buried.ids[0]]


@pytest.mark.parametrize("query", [REFUSED, EVERY, DeadLetterQuery(user="user-1")], ids=str)
def test_a_selection_ahead_of_all_letters_is_empty(tmp_path: Path, query: DeadLetterQuery) -> None:
    buried = Buried(tmp_path / "spool.db", 4)
    buried.bury(1, 100)
    assert buried.count(0, query) == 0
    assert buried.asked(0, query) == []


def test_a_selection_up_to_a_letter_that_has_gone_is_refused(tmp_path: Path) -> None:
    buried = Buried(tmp_path / "spool.db", 4)
    buried.bury(1, 100)
    buried.bury(2, 200)
    buried.remove(2)
    with pytest.raises(SelectionEnded, match=str(buried.ids[2])):
        buried.count(buried.ids[2])
    with pytest.raises(SelectionEnded):
        buried.asked(buried.ids[2])
    assert buried.sync.store.jobs.latest(10) == []


def test_a_letter_of_another_taker_ends_no_selection(tmp_path: Path) -> None:
    buried = Buried(tmp_path / "spool.db", 4)
    buried.bury(1, 100)
    with pytest.raises(SelectionEnded):
        end_of_selection(buried.sync.store, buried.sync.taker + 1, buried.ids[1])
