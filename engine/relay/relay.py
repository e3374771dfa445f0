"""One relay: sends requests on to Amplitude, as they came, until it has them.

    spool ═► Lines (who may go) ─► up to ``relay.connections`` at once ─► Amplitude
      ▲                                                         │
      └──────────── settle, and what is left of it ◄────────────┘

Everything that changes is changed by one task, which settles what was answered and reads what is
next in one transaction. Workers only make calls: what nobody foresaw in one costs its request.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.backoff import unknown_delay_s
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.relay.answers import Kind, Verdict, judge
from amplitude_intercom.engine.relay.host import OPEN, OUTAGE, Host
from amplitude_intercom.engine.relay.keeping import lost_events
from amplitude_intercom.engine.relay.lines import Lines, Part
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import short_key
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.relaying import DAMAGED
from amplitude_intercom.engine.spool.requests import LostEvent, WaitingRequest
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.originals import Original, as_sent

_log = structlog.get_logger(__name__)

READ: Final = 64
"""Requests that are read at once."""

HEAVY_BYTES: Final = 262_144
"""Bodies over this are taken apart in a thread."""

MOST_TRIES: Final = 10
"""Failures of a single event, while others were taken, before it is a dead letter."""

ALONE_TRIES: Final = 3
"""Of these, how many it must have failed alone."""

TOGETHER: Final = 3
"""Failures of a request before it goes in pieces: one event of it may be why."""

MOST_REFUSED: Final = 20
"""Requests in a row that are refused whole, and none taken between: the next ones wait."""

MOST_TROUBLES: Final = 10_000
"""Requests of which it is remembered what they have met."""

MOST_HALVINGS: Final = 11
"""After as many, two thousand events go one by one."""

KEY_WAIT_S: Final = 60.0
LONGEST_KEY_WAIT_S: Final = 600.0
KEY_PATIENCE_MS: Final = 4 * 3_600_000
"""Since acceptance; after that a request whose API key is refused becomes dead letters."""

MOST_KEYS: Final = 1_000
"""API keys that may be refused at once, beyond which requests with others are dead letters."""

LOG_EVERY_S: Final = 60.0

SPOKEN: Final = frozenset({Kind.TAKEN, Kind.SORTED, Kind.REFUSED, Kind.BAD_KEY, Kind.BUSY})
"""What only Amplitude itself says."""


Requests = Sequence[WaitingRequest]


class Trouble(msgspec.Struct):
    """What a request has met: when it failed last, how often that was while others were taken (and
    which of its events were alone then), and how often devices of it were throttled."""

    last_s: float = math.inf
    charges: int = 0
    alone: Counter[int] = msgspec.field(default_factory=Counter)
    throttles: int = 0


class Answered(msgspec.Struct):
    """A part that was out. ``original``: its request, where that could be read."""

    part: Part
    verdict: Verdict
    original: Original | None = None
    failure: Failure | None = None
    """Why nothing will become of it, where that is not Amplitude's word."""


class Settling(msgspec.Struct):
    """What a part's answer settles: events by index."""

    delivered: Sequence[int] = ()
    lost: Sequence[LostEvent] = ()


class Relay:
    """See the module's docstring."""

    def __init__(
        self,
        settings: RelaySettings,
        spool: TakerSpool,
        wire: AmplitudeWire,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.spool = spool
        self.calls: Counter[int] = Counter()
        """Requests that were sent, by status; 0: no answer."""
        self.refused_keys: dict[str, str] = {}
        """API keys that Amplitude refuses now, with what it said."""
        self._wire = wire
        self._now_ms = now_ms
        self._jitter = jitter
        self._news = anyio.Event()
        self._progress = anyio.Event()
        self._ending = False
        self._reset()
        spool.appended = self._appended

    def _reset(self) -> None:
        self._lines = Lines()
        self._host = Host()
        self._answered: list[Answered] = []
        self._troubles: dict[int, Trouble] = {}
        self._key_failures: Counter[str] = Counter()
        self.refused_keys.clear()
        self._refused_in_a_row = 0
        self._out = 0
        self._probes = 0
        self._may_read = True
        self._logged_s = float("-inf")

    @property
    def health(self) -> str:
        """``open``, ``failing`` (some are not answered), ``outage``, ``busy``, ``invalid_key``."""
        state = self._host.state(loop_time_s())
        if state == OPEN and self._host.said:
            return "failing"
        return "invalid_key" if state == OPEN and self.refused_keys else state

    @property
    def said(self) -> str:
        """What the last failure was, while it matters."""
        return self._host.said or next(iter(self.refused_keys.values()), "")

    @property
    def held(self) -> int:
        """How many devices and keys wait for their time."""
        return self._lines.held

    def _appended(self) -> None:
        self._may_read = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()

    def drain(self) -> None:
        """Send nothing new; what is under way is finished."""
        self._ending = True
        self._tell()
        self._progress.set()

    async def settled(self) -> None:
        """Wait until nothing waits."""
        while self.spool.counters["pending"] and not self._ending:
            await self._progress.wait()

    async def run(self) -> None:
        """Send until ``drain`` was called, and what was under way is settled."""
        structlog.contextvars.bind_contextvars(relay=self.settings.name)
        self._reset()
        async with anyio.create_task_group() as calls:
            while not self._ending or self._out:
                self._news = anyio.Event()
                await self._settle_and_read()
                self._send_next(calls)
                await self._rest()
            await self._settle_and_read()

    async def _rest(self) -> None:
        """Wait until something has changed, or is due."""
        if self._answered or (self._ending and not self._out):
            return
        if not self._ending and (self._reads_front or self._lines.reads_again):
            return
        now_s = loop_time_s()
        due_s = [self._lines.next_wake_s, self._host.next_look_s(now_s)]
        next_s = min((at_s for at_s in due_s if at_s is not None), default=None)
        with anyio.move_on_after(None if next_s is None else max(0.0, next_s - now_s)):
            await self._news.wait()

    # --- calls ----------------------------------------------------------------------------

    def _send_next(self, calls: TaskGroup) -> None:
        now_s = loop_time_s()
        slots = self._host.slots(self.settings.connections, self._out, now_s)
        is_probe = self._host.state(now_s) == OUTAGE
        for _ in range(0 if self._ending else slots):
            self._probes += is_probe
            is_newest = is_probe and self._probes % 2 == 0
            part = self._lines.newest(self._troubles) if is_newest else self._lines.next()
            if part is None:
                return
            self._out += 1
            calls.start_soon(self._send, part)

    async def _send(self, part: Part) -> None:
        answered = Answered(part, Verdict(Kind.REFUSED))
        try:
            await self._exchange(answered)
        except Exception as fault:
            answered.failure = internal_failure(fault, request=part.request.id)
        self._answered.append(answered)
        self._tell()

    async def _exchange(self, one: Answered) -> None:
        """Send a part; note what became of it."""
        part, request = one.part, one.part.request
        try:
            one.original = await self.spool.persist(
                lambda store: store.relayed.original(request.id)
            )
        except ValueError:
            one.failure = DAMAGED
        if request.is_damaged:
            one.failure = DAMAGED
        if one.failure is not None:
            return
        if one.original is None:  # it was the oldest, and is dropped
            one.verdict = Verdict(Kind.TAKEN)
            return
        only = part.indexes if len(part.indexes) < request.count else None
        waited_ms = self._now_ms() - request.accepted_at_ms
        if len(one.original.body) > HEAVY_BYTES:
            sent = await asyncio.to_thread(as_sent, one.original, only, waited_ms)
        else:
            sent = as_sent(one.original, only, waited_ms)
        try:
            answer = await self._wire.send(sent)
        except NoAnswer as error:
            self.calls[0] += 1
            one.verdict = Verdict(Kind.NO_ANSWER, said=str(error))
            return
        self.calls[answer.status] += 1
        one.verdict = judge(answer, sent, len(part.indexes))

    # --- answers --------------------------------------------------------------------------

    async def _settle_and_read(self) -> None:
        """Settle what was answered, read what is next, and let lines know of both."""
        now_s = loop_time_s()
        answered, self._answered = self._answered, []
        settlings = [await self._decide(one, now_s) for one in answered]
        self._lines.wake(now_s)
        reads_front = self._reads_front and not self._ending
        again = self._lines.again if self._lines.reads_again and not self._ending else None
        if not reads_front and again is None and not answered:
            return
        now_ms, taker, front = self._now_ms(), self.spool.taker, self._lines.front

        def job(store: Transaction) -> tuple[list[int], Requests, Requests]:
            left = [
                store.relaying.settle(
                    taker, one.part.request.id, settling.delivered, settling.lost, now_ms
                )
                for one, settling in zip(answered, settlings, strict=True)
            ]
            passed_over = [] if again is None else store.relayed.next(taker, again, READ)
            new = store.relayed.next(taker, front, READ) if reads_front else []
            return left, [row for row in passed_over if row.id <= front], new

        self._may_read = self._may_read and not reads_front
        left, passed_over, new = await self.spool.persist(job)
        self._progress.set()
        self._progress = anyio.Event()
        self._out -= len(answered)
        for one, settling, events_left in zip(answered, settlings, left, strict=True):
            self._follow(one, settling, now_s)
            if not events_left:
                self._troubles.pop(one.part.request.id, None)
        self._stand(passed_over)
        if again is not None and len(passed_over) < READ:
            self._forget_keys(self._lines.end_pass())
        self._stand(new)
        self._may_read = self._may_read or len(new) == READ

    @property
    def _reads_front(self) -> bool:
        return self._may_read and self._lines.reads_front

    def _stand(self, requests: Requests) -> None:
        """Let requests stand in their lines."""
        for request in requests:
            self._lines.add(request, self._pieces(request.id))

    def _forget_keys(self, keys: Iterable[str]) -> None:
        """Take in that nothing waits any more of API keys that were refused."""
        for key in keys:
            self.refused_keys.pop(key, None)
            self._key_failures.pop(key, None)

    def _pieces(self, id_: int) -> int:
        """Return in how many pieces a request goes: it may be one event that makes it fail, and a
        device may have more events in it than Amplitude takes of one at once."""
        trouble = self._troubles.get(id_)
        if trouble is None:
            return 1
        halvings = max(trouble.throttles, trouble.charges - TOGETHER + 1, 0)
        return 1 << min(halvings, MOST_HALVINGS)

    async def _decide(self, one: Answered, now_s: float) -> Settling:
        """Return what an answer settles."""
        self._judge_streak(one)
        if one.verdict.kind is Kind.TAKEN:
            return Settling(one.part.indexes)
        lost = self._lost(one, now_s)
        if not lost:
            return Settling()
        if one.original is not None and len(one.original.body) > HEAVY_BYTES:
            return Settling((), await asyncio.to_thread(lost_events, one.original, lost))
        return Settling((), lost_events(one.original, lost))

    def _lost(self, one: Answered, now_s: float) -> dict[int, Failure]:
        """Return which events of a request will not be taken, and why."""
        part, verdict = one.part, one.verdict
        if one.failure is not None:
            return dict.fromkeys(part.indexes, one.failure)

        def failure(reason: DeadReason, said: str = verdict.said) -> Failure:
            return Failure(reason, verdict.status, message=said)

        match verdict.kind:
            case Kind.SORTED:
                refused = DeadReason.AMPLITUDE_REFUSED
                return {part.indexes[i]: failure(refused, s) for i, s in verdict.refused.items()}
            case Kind.REFUSED:
                return dict.fromkeys(part.indexes, failure(DeadReason.AMPLITUDE_REFUSED))
            case Kind.TOO_LARGE if len(part.indexes) == 1:
                return {part.indexes[0]: failure(DeadReason.TOO_LARGE)}
            case Kind.BAD_KEY if self._is_over(part.request):
                return dict.fromkeys(part.indexes, failure(DeadReason.INVALID_API_KEY))
            case Kind.NO_ANSWER if self._charge(part, now_s):
                return {part.indexes[0]: failure(DeadReason.AMPLITUDE_FAILING)}
        return {}

    def _judge_streak(self, one: Answered) -> None:
        """Let many requests in a row that are refused whole count as a fault of the settings, or of
        Amplitude, and not of each of them: then they wait."""
        kind = one.verdict.kind
        if kind in (Kind.TAKEN, Kind.SORTED) and one.original is not None:
            self._refused_in_a_row = 0
        elif kind is Kind.REFUSED and one.failure is None:
            self._refused_in_a_row += 1
            if self._refused_in_a_row > MOST_REFUSED:
                said = f"refuses everything: {one.verdict.said}"
                one.verdict = Verdict(Kind.NO_ANSWER, one.verdict.status, said)

    def _charge(self, part: Part, now_s: float) -> bool:
        """Charge a failure to its request, where others were taken since its last; return whether
        that was one event too often."""
        if not self._is_own(part.request.id, now_s):
            return False
        trouble = self._trouble(part.request.id)
        trouble.charges += 1
        if len(part.indexes) > 1:
            return False
        trouble.alone[part.indexes[0]] += 1
        return trouble.charges >= MOST_TRIES and trouble.alone[part.indexes[0]] >= ALONE_TRIES

    def _is_own(self, id_: int, now_s: float) -> bool:
        """Take in that a request has failed; return whether others were taken since its last."""
        trouble = self._trouble(id_)
        is_own = self._host.last_taken_s > trouble.last_s
        trouble.last_s = now_s
        return is_own

    def _trouble(self, id_: int) -> Trouble:
        if len(self._troubles) > MOST_TROUBLES:  # of requests that were dropped, say
            self._troubles.pop(next(iter(self._troubles)))
        return self._troubles.setdefault(id_, Trouble())

    def _is_over(self, request: WaitingRequest) -> bool:
        """Return whether no more is waited for a request's API key."""
        waited_ms = self._now_ms() - request.accepted_at_ms
        is_new = request.api_key not in self.refused_keys
        return waited_ms >= KEY_PATIENCE_MS or (is_new and len(self.refused_keys) >= MOST_KEYS)

    def _follow(self, one: Answered, settling: Settling, now_s: float) -> None:
        """Let lines, host and keys know what became of a part."""
        part, verdict, request = one.part, one.verdict, one.part.request
        settled = {*settling.delivered, *(event.index for event in settling.lost)}
        waiting = {request.device(part.indexes[i]) for i in verdict.waiting}
        lines = part.lines
        self._lines.answered(part, settled)
        if verdict.kind is Kind.NO_ANSWER:
            self._note_failure(verdict, now_s)
            trouble = self._troubles.get(request.id)
            charges = 0 if trouble is None else trouble.charges
            until_s = now_s + unknown_delay_s(max(1, charges), self._jitter())
            self._lines.hold(lines if part.indexes else (), until_s, request.id)
            return
        if verdict.kind in SPOKEN and one.original is not None and one.failure is None:
            self._note_word(took=verdict.kind in (Kind.TAKEN, Kind.SORTED))
        if verdict.kind is Kind.BUSY and self._is_own(request.id, now_s):
            waiting = lines
        elif verdict.kind is Kind.BUSY:
            self._host.be_busy(verdict.said, now_s + verdict.wait_s)
        elif verdict.kind is Kind.BAD_KEY:
            self._note_bad_key(request, verdict, now_s, waits=bool(part.indexes))
        elif verdict.kind is Kind.TOO_LARGE and part.indexes:
            self._lines.halve(part)
        self._lines.hold(waiting, now_s + verdict.wait_s, request.id)
        if waiting and verdict.kind is Kind.SORTED:
            self._trouble(request.id).throttles += 1
        if verdict.kind is Kind.TAKEN and one.original is not None:
            self._note_taken(request)

    def _note_taken(self, request: WaitingRequest) -> None:
        self._key_failures.pop(request.api_key, None)
        if self.refused_keys.pop(request.api_key, None):
            _log.info("Amplitude takes an API key again", api_key=short_key(request.api_key))

    def _note_bad_key(
        self, request: WaitingRequest, verdict: Verdict, now_s: float, *, waits: bool
    ) -> None:
        """Let what comes with a key wait, or forget it where its requests have waited enough."""
        key = request.api_key
        if not waits:
            self.refused_keys.pop(key, None)
            self._key_failures.pop(key, None)
            return
        if key not in self.refused_keys and len(self.refused_keys) < MOST_KEYS:
            self.refused_keys[key] = verdict.said
            text = "Amplitude refuses an API key: what comes with it waits"
            _log.warning(text, api_key=short_key(key))
        if not self._lines.is_held(key):  # else another of this round has said so already
            self._key_failures[key] += 1
        wait_s = min(LONGEST_KEY_WAIT_S, KEY_WAIT_S * 2 ** min(self._key_failures[key] - 1, 8))
        self._lines.hold_key(key, now_s + wait_s, request.id)

    def _note_failure(self, verdict: Verdict, now_s: float) -> None:
        before = self._host.state(now_s)
        self._host.failed(verdict.said, now_s, self._jitter())
        if self._host.state(now_s) != before or now_s >= self._logged_s + LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "Amplitude does not answer, or somebody else does: it is tried again",
                status=verdict.status,
                said=verdict.said,
                health=self._host.state(now_s),
            )

    def _note_word(self, *, took: bool) -> None:
        """Take in that Amplitude itself has answered."""
        now_s = loop_time_s()
        if self._host.state(now_s) == OUTAGE:
            _log.info("Amplitude answers again")
            self._logged_s = float("-inf")
        self._host.spoke(now_s, took=took)
