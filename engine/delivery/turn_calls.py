"""The calls of one turn, for what is called on its behalf."""

from __future__ import annotations

from amplitude_intercom.engine.delivery.calls import NotAnswered, NotNow
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.transports.intercom import Answer, Request


class TurnCalls:
    """Makes calls for one turn."""

    def __init__(self, gate: Gate, turn: Turn) -> None:
        self.gate = gate
        self._turn = turn

    async def call(self, request: Request, *, optional: bool = False) -> Answer:
        """Return the answer to a call; ``optional``: see ``Gate.call``.

        Raises:
            NotNow: there is none.
        """
        outcome = await self.gate.call(request, self._turn, optional=optional)
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        return outcome.answer
