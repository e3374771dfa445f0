"""The refusal of takers for want of free bytes.

Rules
=====
1. Only waiting bytes count: those of packed batches, and those that records have taken along. Dead
   letters, insert ids and contacts have budgets of their own, and never close intake.
2. At ``spool.max_bytes`` every taker is refused. Above ``NEARLY_FULL`` of it a taker with more than
   an equal share is refused, so that a taker without deliveries does not close the intake of the
   others. Shares count all takers, also those without waiting bytes.
3. A refused taker stays refused until it is below ``RELIEF`` of its bound. Without that, refusals
   would come and go from batch to batch, and a later batch would overtake an earlier one.
"""

from __future__ import annotations

from collections.abc import Collection

from amplitude_intercom.engine.spool.accounts import INBOX, SPOOL, TAKEN_ALONG, WAITING, Accounts

NEARLY_FULL = 0.8
RELIEF = 0.95


class Fullness:
    """The takers that are refused now. The module's docstring has the rules."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bounds: dict[int, int] = {}
        """The share of each taker that is refused for it, as it was at the refusal."""
        self._is_full = False
        self.refused: dict[int, str] = {}
        """Takers that are refused as of the last commit, each with a sentence that says why."""

    def why_not(self, taker: int, takers: Collection[int], accounts: Accounts) -> str:
        """Return the reason for refusing a taker now, within a transaction; empty if there is none.

        ``takers`` has all takers, with waiting bytes or not.
        """
        # Until the next commit, or a later batch of the same call could overtake (rule 3).
        if taker in self.refused:
            return self.refused[taker]
        return self._judge(taker, len(takers), accounts)

    def share_bytes(self, takers: int) -> int:
        """Return the equal share of each of ``takers`` takers."""
        return self._max_bytes // max(1, takers)

    def update(self, takers: Collection[int], accounts: Accounts) -> None:
        """Update the refused takers, after a commit."""
        total = accounts.value(SPOOL, WAITING)
        self._is_full = total >= (RELIEF if self._is_full else 1.0) * self._max_bytes
        # As nearly always: then a thousand takers need not be judged at each commit.
        if total < RELIEF * NEARLY_FULL * self._max_bytes:
            self._bounds.clear()
            self.refused = {}
            return
        # The bounds first: each judgement goes by them.
        bounds = {taker: self._bound(taker, len(takers), accounts) for taker in takers}
        self._bounds = {taker: bound for taker, bound in bounds.items() if bound is not None}
        found = {taker: self._judge(taker, len(takers), accounts) for taker in takers}
        self.refused = {taker: why for taker, why in found.items() if why}

    def _judge(self, taker: int, takers: int, accounts: Accounts) -> str:
        total, held = accounts.value(SPOOL, WAITING), _held(taker, accounts)
        if self._is_full or total >= self._max_bytes:
            return f"{total:,} bytes wait, `spool.max_bytes` is {self._max_bytes:,}"
        bound = self._bound(taker, takers, accounts)
        if bound is None:
            return ""
        taken = f"{total / self._max_bytes:.0%} of `spool.max_bytes` are taken"
        return f"{held:,} bytes of it wait, {taken} and its share was {bound:,}"

    def _bound(self, taker: int, takers: int, accounts: Accounts) -> int | None:
        """Return the share for which a taker is refused; None if it is not."""
        held = _held(taker, accounts)
        bound = self._bounds.get(taker)
        if bound is not None and held >= RELIEF * bound:
            return bound
        share = self.share_bytes(takers)
        is_nearly_full = accounts.value(SPOOL, WAITING) >= NEARLY_FULL * self._max_bytes
        return share if is_nearly_full and held > share else None


def _held(taker: int, accounts: Accounts) -> int:
    return accounts.value(taker, INBOX) + accounts.value(taker, TAKEN_ALONG)
