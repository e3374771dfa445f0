"""What calls with one access token have shown; it goes on where another gate takes over.

Rules
=====
1. One truth: the gate of today reads and writes it, and keeps nothing of the kind itself.
2. A gate is built while the one before still makes calls, and changes nothing here before it
   begins.
3. It is of the token and its host. Another token, or another host, begins without it.
"""

from __future__ import annotations

from collections.abc import Callable

from amplitude_intercom.engine.delivery.call_figures import CallFigures
from amplitude_intercom.engine.delivery.health import Health
from amplitude_intercom.engine.delivery.pace import Pace
from amplitude_intercom.engine.delivery.token_and_budget import BudgetDoubt, TokenState


class TokenMemory:
    """See the module's docstring."""

    def __init__(
        self, limit: float, *, is_known: bool = False, counts_before: bool = False
    ) -> None:
        """``limit``: calls a window; ``is_known`` and ``counts_before`` as of ``Pace``."""
        self.pace = Pace(limit, is_known=is_known, counts_before=counts_before)
        self.health = Health()
        self.budget = BudgetDoubt()
        self.token = TokenState()
        self.figures = CallFigures()
        self.pace.paused = self.figures.note_pause

    def begin(self, guess: float, probe_delay_s: Callable[[int], float]) -> None:
        """Go on for another gate; the one before has ended.

        ``guess``: calls a window as long as no answer has named a limit. ``probe_delay_s`` returns
        the seconds between probes after so many failures in a row.
        """
        self.pace.is_closed = False
        self.pace.guess(guess)
        self.health.delay_s = probe_delay_s
        self.health.end_probes()
