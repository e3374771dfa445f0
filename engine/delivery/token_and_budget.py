"""Whether a 401, 403 or 429 concerns the token, its budget, or one user's call alone.

Rules
=====
1. A 401 or 403 concerns the token if ``GET /me`` is refused too. The last answer to ``/me`` counts
   for ``ME_COUNTS_S``. Without an answer of Intercom's to ``/me``, a 401 concerns the token, a 403
   the call.
2. While the token is refused, ``/me`` is asked again and again, with pauses that double, until it
   succeeds. No other call leaves.
3. A 429 does not concern the budget if Intercom said within the last ``LEFT_FOR_S`` that over
   ``LEFT_SHARE`` of it is left, because some limits are a user's or an endpoint's. If two users get
   a 429 within ``TOGETHER_S``, it concerns the budget all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.delivery.health import Who
from amplitude_intercom.transports.intercom import Answer

ME_COUNTS_S: Final = {401: 1.0, 403: 10.0}
"""Seconds for which an answer to ``GET /me`` counts, by the status in question."""

ME_FIRST_S: Final = 0.5
ME_MOST_S: Final = 60.0
"""Pauses between ``GET /me`` while the token is refused: the first, and the longest."""

LEFT_SHARE: Final = 0.1
LEFT_FOR_S: Final = 10.0
TOGETHER_S: Final = 1.0


AskMe = Callable[[], Awaitable[Answer | None]]
"""Returns Intercom's answer to ``GET /me``; None without one."""


class TokenState:
    """Whether Intercom accepts the access token, by ``GET /me``."""

    def __init__(self) -> None:
        self._asking = anyio.Lock()
        self._asked_s = float("-inf")
        self._said: Answer | None = None
        self._refused = anyio.Event()
        self.cause = ""
        self.refused_s = 0.0
        """``cause`` is the answer that last refused the token, ``refused_s`` its instant."""

    @property
    def is_refused(self) -> bool:
        """Whether the token is refused now, so that no call may leave."""
        return self._refused.is_set()

    def refuse(self, cause: str) -> bool:
        """Note a refusal of the token; return whether it is the first since the last success."""
        is_news = not self._refused.is_set()
        if is_news:
            self.cause, self.refused_s = cause, anyio.current_time()
        self._refused.set()
        return is_news

    async def check(self, status: int, ask: AskMe) -> bool:
        """Return whether the token is accepted, after a call got ``status`` 401 or 403."""
        async with self._asking:  # calls that wait here share the answer
            if anyio.current_time() - self._asked_s >= ME_COUNTS_S[status]:
                self._said = await ask()
                self._asked_s = anyio.current_time()
        if self._said is None:
            return status == 403
        return self._said.status not in ME_COUNTS_S

    async def restored(self, ask: AskMe, jitter: Callable[[], float]) -> float:
        """Wait until the token was refused and is accepted again; return the seconds between."""
        await self._refused.wait()
        failures = 0
        while True:
            failures += 1
            await anyio.sleep(probe_delay_s(failures, ME_FIRST_S, ME_MOST_S, jitter()))
            async with self._asking:
                self._said = await ask()
                self._asked_s = anyio.current_time()
            if self._said is not None and self._said.status < 300:
                self._refused = anyio.Event()
                return round(anyio.current_time() - self.refused_s, 1)


class BudgetDoubt:
    """The last share of the budget that Intercom said is left, and the last user with a 429."""

    def __init__(self) -> None:
        self.remaining: int | None = None
        """The calls that Intercom last said are left in its window; None: it has said nothing."""
        self._share = 0.0
        self._at_s = float("-inf")
        self._refused: Who | None = None
        self._refused_s = float("-inf")

    def note(self, limit: int | None, remaining: int | None, at_s: float) -> None:
        """Note the headers of an answer other than a 429."""
        if limit and remaining is not None:
            self.remaining = remaining
            self._share, self._at_s = remaining / limit, at_s

    def note_refusal(self, who: Who, at_s: float) -> bool:
        """Note a user's 429; return whether it cannot concern the budget."""
        another = self._refused is not None and self._refused != who
        together = another and at_s - self._refused_s <= TOGETHER_S
        self._refused, self._refused_s = who, at_s
        plenty = self._share > LEFT_SHARE and at_s - self._at_s <= LEFT_FOR_S
        return plenty and not together
