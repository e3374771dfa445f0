"""What 401, 403 and 429 are about: the token, the budget, or one user's call alone.

Rules
=====
1. 401 and 403 are the token's where ``GET /me`` is refused too. Its last answer counts for
   ``ME_COUNTS_S``. Where it has none that is Intercom's, a 401 is the token's and a 403 the call's.
2. Once the token is refused, ``/me`` is asked again and again, with pauses that double, until it is
   answered: nothing else leaves meanwhile.
3. A 429 is doubted where Intercom has said, not longer than ``LEFT_FOR_S`` ago, that over
   ``LEFT_SHARE`` of the budget is left: some limits are a user's or an endpoint's. But where two
   users get one within a second, it is the budget's after all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.delivery.health import Who
from amplitude_intercom.transports.intercom import Answer

ME_COUNTS_S: Final = {401: 1.0, 403: 10.0}
ME_FIRST_S: Final = 0.5
ME_MOST_S: Final = 60.0
"""Pauses between ``GET /me`` while the token is refused: the first, and the longest."""

LEFT_SHARE: Final = 0.1
LEFT_FOR_S: Final = 10.0
TOGETHER_S: Final = 1.0


class Token:
    """Whether the access token is taken, as far as ``GET /me`` tells."""

    def __init__(
        self, ask: Callable[[], Awaitable[Answer | None]], jitter: Callable[[], float]
    ) -> None:
        """``ask`` returns the answer to ``GET /me``, or None: none that is Intercom's."""
        self._ask = ask
        self._jitter = jitter
        self._asking = anyio.Lock()
        self._asked_s = float("-inf")
        self._said: Answer | None = None
        self._refused = anyio.Event()
        self.cause = ""
        self.refused_s = 0.0
        """Of the last time that it was refused: the answer, and since when."""

    @property
    def is_refused(self) -> bool:
        """Whether nothing may leave."""
        return self._refused.is_set()

    def refuse(self, cause: str) -> bool:
        """Take in that it is refused, and how; return whether that is news."""
        is_news = not self._refused.is_set()
        if is_news:
            self.cause, self.refused_s = cause, anyio.current_time()
        self._refused.set()
        return is_news

    async def is_well(self, status: int) -> bool:
        """Return whether the token is taken, though a call was answered 401 or 403."""
        async with self._asking:  # who comes meanwhile takes the same answer
            if anyio.current_time() - self._asked_s >= ME_COUNTS_S[status]:
                self._said = await self._ask()
                self._asked_s = anyio.current_time()
        if self._said is None:
            return status == 403
        return self._said.status not in ME_COUNTS_S

    async def restored(self) -> float:
        """Wait until the token was refused and is taken again; return the seconds between."""
        await self._refused.wait()
        began_s = anyio.current_time()
        failures = 0
        while True:
            failures += 1
            await anyio.sleep(probe_delay_s(failures, ME_FIRST_S, ME_MOST_S, self._jitter()))
            async with self._asking:
                self._said = await self._ask()
                self._asked_s = anyio.current_time()
            if self._said is not None and self._said.status < 300:
                self._refused = anyio.Event()
                return round(anyio.current_time() - began_s, 1)


class BudgetDoubt:
    """What Intercom said last of how much of the budget is left, and who was refused."""

    def __init__(self) -> None:
        self._share = 0.0
        self._at_s = float("-inf")
        self._refused: Who | None = None
        self._refused_s = float("-inf")

    def note(self, limit: int | None, remaining: int | None, at_s: float) -> None:
        """Take in the headers of an answer that is no 429."""
        if limit and remaining is not None:
            self._share, self._at_s = remaining / limit, at_s

    def is_not_meant(self, who: Who, at_s: float) -> bool:
        """Take in a 429 of a user; return whether it cannot be about the budget."""
        another = self._refused is not None and self._refused != who
        together = another and at_s - self._refused_s <= TOGETHER_S
        self._refused, self._refused_s = who, at_s
        plenty = self._share > LEFT_SHARE and at_s - self._at_s <= LEFT_FOR_S
        return plenty and not together
