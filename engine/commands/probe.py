"""A probe: trying out behaviour of a workspace that Intercom does not document.

Each question ends as one finding; those about events as two, and the second needs the first.
The questions build on each other: a contact is made, gets events, shares its e-mail, is archived,
and shares its e-mail and id again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import msgspec

from amplitude_intercom.engine.commands import probe_answers as words
from amplitude_intercom.engine.commands.probe_calls import Ended, NoResult, ProbeCalls
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer, ListedEvent, Wire

EVENT_NAME: Final = "amplitude-intercom-probe"
"""The same for every probe, since a workspace has 120 names."""

LOOKS_AFTER_S: Final = (1.0, 2.0, 4.0, 8.0)
"""Pauses before looks at a list that may lag, and before a new contact gets its first event."""

POLL_S: Final = 0.5
MOST_POLLS: Final = 26
"""Between calls that wait for the next window to begin; in all they take longer than one."""

PAST_S: Final = 10
FUTURE_S: Final = 3_600
"""How far the events of a probe are behind the clock, and ahead of it."""


class Probe:
    """One probe. It sleeps between looks, in the running loop's time."""

    def __init__(self, wire: Wire, now_s: Callable[[], float] = time.time) -> None:
        """``now_s``: Unix time in seconds."""
        self.calls = ProbeCalls(wire, now_s)
        self._now_s = now_s
        self._findings: list[Finding] = []
        self._same_at = 0
        self._kept = 0
        self._costs: bool | None = None
        self._future: tuple[Answer, int] | None = None
        self._listed: Sequence[ListedEvent] = ()

    @property
    def findings(self) -> list[Finding]:
        """The findings, and the test contacts that are left."""
        return [*self._findings, *self.calls.left]

    @property
    def counts_before(self) -> bool | None:
        """Whether ``Remaining`` is the value before its call is charged; None: not known."""
        return words.counts_before(self.calls.rates)

    async def run(self, *, events: bool = True) -> None:
        """Ask all questions; ``events``: those too that need an event's name.

        Cancelled or not, it may have made contacts: ``calls.clean_up`` archives them.
        """
        try:
            await self._question(words.PROBE, self._make_first)
            if self.calls.ids:
                await self._ask_of_contact(events=events)
            await self._question(words.REMAINING, self._wait_for_window)
            self._findings.append(words.remaining(self.calls.rates))
        except Ended as error:
            self._findings.append(Finding("error", words.PROBE, f"it ended early: {error}"))

    async def _ask_of_contact(self, *, events: bool) -> None:
        sent = events and await self._question(words.SAME_EVENT, self._send_twice)
        if sent:
            await self._question(words.FUTURE_EVENT, self._send_ahead)
        await self._question(words.LIVE_EMAIL, self._share_email)
        if sent:
            await self._question(words.SAME_EVENT, self._look_for_both)
        if self._future is not None:
            self._findings.append(words.future_event(*self._future, self._listed))
        if await self._question(words.ARCHIVED_ID, self._archive):
            await self._question(words.ARCHIVED_EMAIL, self._share_archived_email)
            await self._question(words.ARCHIVED_ID, self._share_archived_id)

    async def _question(self, key: str, ask: Callable[[], Awaitable[None]]) -> bool:
        """Ask; return whether there is a result, else say why not.

        Raises:
            Ended: no other question would have one.
        """
        try:
            await ask()
        except Ended:
            raise
        except NoResult as error:
            self._findings.append(Finding(error.level, key, f"no result: {error}"))
            return False
        return True

    # --- contacts -------------------------------------------------------------------------

    async def _make_first(self) -> None:
        answer = await self.calls.create(email=self.calls.email)
        if answer.status >= 300:
            raise NoResult(f"a test contact cannot be made: {words.said(answer)}", answer.status)

    async def _share_email(self) -> None:
        await self._share(words.LIVE_EMAIL, "-b", self.calls.email)

    async def _archive(self) -> None:
        why = await self.calls.archive()
        if why:
            raise NoResult(f"the test contacts cannot be archived: {why}")

    async def _share_archived_email(self) -> None:
        await self._share(words.ARCHIVED_EMAIL, "-c", self.calls.email)

    async def _share_archived_id(self) -> None:
        await self._share(words.ARCHIVED_ID)

    async def _share(self, key: str, suffix: str = "", email: str = "") -> None:
        earlier = frozenset(self.calls.ids)
        answer = await self.calls.create(suffix, email)
        self._findings.append(words.conflict(key, answer, earlier))

    # --- events ---------------------------------------------------------------------------

    async def _send(self, created_at: int) -> Answer:
        """Send an event of the first test contact; ``created_at`` in Unix seconds."""
        event = {
            "event_name": EVENT_NAME,
            "created_at": created_at,
            "user_id": self.calls.external_id,
        }
        return await self.calls.ask(intercom.send_event(msgspec.json.encode(event)))

    async def _send_twice(self) -> None:
        """Send an event twice, and look once, which shows the cost of the second one."""
        self._same_at = int(self._now_s()) - PAST_S
        for wait_s in (0.0, *LOOKS_AFTER_S):  # a new contact may not be known at once
            await anyio.sleep(wait_s)
            since = len(self.calls.rates)
            answer = await self._send(self._same_at)
            if answer.status != 404:
                break
        if intercom.says_too_many_names(answer):
            text = "the workspace takes no further event name; archive one, or use `--no-events`"
            raise NoResult(f"{text}: {words.said(answer)}", answer.status, "warning")
        if answer.status < 300:
            answer = await self._send(self._same_at)
        if answer.status >= 300:
            text = f"an event is refused with {words.said(answer)}"
            raise NoResult(text, answer.status, "warning")
        self._kept = await self._look()
        self._costs = words.repeat_costs(self.calls.rates[since:])

    async def _send_ahead(self) -> None:
        created_at = int(self._now_s()) + FUTURE_S
        self._future = await self._send(created_at), created_at

    async def _look(self) -> int:
        """Return how many of the two events are listed."""
        answer = await self.calls.ask(intercom.list_events(self.calls.external_id))
        if answer.status not in (200, 404):
            text = f"events cannot be listed: {words.said(answer)}"
            raise NoResult(text, answer.status)
        self._listed = intercom.parse_events(answer)
        return sum(event.created_at == self._same_at for event in self._listed)

    async def _look_for_both(self) -> None:
        """Look until both events are seen, or one in two looks, a second apart at least."""
        waited_s, is_settled = 0.0, False
        for wait_s in LOOKS_AFTER_S:
            await anyio.sleep(wait_s)
            waited_s += wait_s
            before, self._kept = self._kept, await self._look()
            is_settled = self._kept > 1 or 0 < before == self._kept
            if is_settled:
                break
        found = words.same_event(self._kept, is_settled, self._costs, waited_s)
        self._findings.append(found)

    # --- the rate limit -------------------------------------------------------------------

    async def _wait_for_window(self) -> None:
        """Call until a window has shown how its first call is counted, or is over."""
        for _ in range(MOST_POLLS):
            if self.counts_before is not None:
                return
            await self.calls.ask(intercom.me())
            if not self.calls.rates:
                return
            await anyio.sleep(POLL_S)
