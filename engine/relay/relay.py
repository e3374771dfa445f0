"""One relay: sends requests on to Amplitude, as they came, until it has them.

    spool ═► Lines (who may go) ─► up to MOST_OUT at once ─► Amplitude
      ▲                                                         │
      └──────────── settle, and what is left of it ◄────────────┘

Everything that changes is changed by one task, which settles what was answered and reads what is
next in one transaction. Workers only make calls: what nobody foresaw in one costs its request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.backoff import unknown_delay_s
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.relay.answers import Kind, Verdict, judge
from amplitude_intercom.engine.relay.host import OPEN, OUTAGE, Host
from amplitude_intercom.engine.relay.keeping import ORIGIN
from amplitude_intercom.engine.relay.lines import Lines, Part
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.spool.relayed import WaitingRequest
from amplitude_intercom.engine.spool.relaying import DAMAGED, LostEvent
from amplitude_intercom.engine.spool.rows import LONGEST_TYPE
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.amplitude import BadEvent, decode_head
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.originals import Original, as_sent, events_of, one_event

_log = structlog.get_logger(__name__)

MOST_OUT: Final = 8
"""Requests that are out at once."""

READ: Final = 64
"""Requests that are read at once."""

HEAVY_BYTES: Final = 262_144
"""Bodies over this are taken apart in a thread."""

MOST_TRIES: Final = 10
"""Failures of a single event, while others were taken, before it is a dead letter."""

TOGETHER: Final = 3
"""Failures of a request before it goes in pieces: one event of it may be why."""

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


class Trouble(msgspec.Struct):
    """What a request has met: since when it fails (None: it does not), how often that was while
    others were taken, and how often devices of it were throttled."""

    first_s: float | None = None
    charges: int = 0
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

    part: Part
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
        self._out = 0
        self._may_read = True
        self._logged_s = float("-inf")

    @property
    def health(self) -> str:
        """``open``, ``outage``, ``busy``, or ``invalid_key`` where some are refused."""
        state = self._host.state(loop_time_s())
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
        if self._may_read and self._lines.wants_more and not self._ending:
            return
        now_s = loop_time_s()
        due_s = [self._lines.next_wake_s, self._host.next_look_s(now_s)]
        next_s = min((at_s for at_s in due_s if at_s is not None), default=None)
        with anyio.move_on_after(None if next_s is None else max(0.0, next_s - now_s)):
            await self._news.wait()

    # --- calls ----------------------------------------------------------------------------

    def _send_next(self, calls: TaskGroup) -> None:
        slots = self._host.slots(MOST_OUT, self._out, loop_time_s())
        for _ in range(0 if self._ending else slots):
            part = self._lines.next()
            if part is None:
                return
            self._out += 1
            calls.start_soon(self._send, part)

    async def _send(self, part: Part) -> None:
        try:
            answered = await self._exchange(part)
        except Exception as fault:
            failure = internal_failure(fault, request=part.request.id)
            answered = Answered(part, Verdict(Kind.REFUSED), failure=failure)
        self._answered.append(answered)
        self._tell()

    async def _exchange(self, part: Part) -> Answered:
        request = part.request
        refused = Verdict(Kind.REFUSED)
        if request.is_damaged:
            return Answered(part, refused, failure=DAMAGED)
        try:
            original = await self.spool.persist(lambda store: store.relayed.original(request.id))
        except ValueError:
            return Answered(part, refused, failure=DAMAGED)
        if original is None:  # it was the oldest, and is dropped
            return Answered(part, Verdict(Kind.TAKEN))
        only = part.indexes if len(part.indexes) < request.count else None
        waited_ms = self._now_ms() - request.accepted_at_ms
        if len(original.body) > HEAVY_BYTES:
            sent = await asyncio.to_thread(as_sent, original, only, waited_ms)
        else:
            sent = as_sent(original, only, waited_ms)
        try:
            answer = await self._wire.send(sent)
        except NoAnswer as error:
            self.calls[0] += 1
            return Answered(part, Verdict(Kind.NO_ANSWER, said=str(error)), original)
        self.calls[answer.status] += 1
        return Answered(part, judge(answer, sent, len(part.indexes)), original)

    # --- answers --------------------------------------------------------------------------

    async def _settle_and_read(self) -> None:
        """Settle what was answered, read what is next, and let lines know of both."""
        now_s = loop_time_s()
        answered, self._answered = self._answered, []
        settlings = [self._decide(one, now_s) for one in answered]
        self._may_read = self._lines.wake(now_s) or self._may_read
        reads = self._may_read and self._lines.wants_more and not self._ending
        if not reads and not answered:
            return
        now_ms, taker = self._now_ms(), self.spool.taker
        behind = self._lines.read_to

        def job(store: Store) -> tuple[list[int], list[WaitingRequest]]:
            left = [_settle(store, taker, settling, now_ms) for settling in settlings]
            return left, store.relayed.next(taker, behind, READ) if reads else []

        self._may_read = self._may_read and not reads
        left, found = await self.spool.persist(job)
        self._progress.set()
        self._progress = anyio.Event()
        self._out -= len(answered)
        for one, settling, events_left in zip(answered, settlings, left, strict=True):
            self._follow(one, settling, now_s)
            if not events_left:
                self._troubles.pop(one.part.request.id, None)
        for request in found:
            self._lines.add(request, self._pieces(request.id))
        self._may_read = self._may_read or len(found) == READ

    def _pieces(self, id_: int) -> int:
        """Return in how many pieces a request goes: it may be one event that makes it fail, and a
        device may have more events in it than Amplitude takes of one at once."""
        trouble = self._troubles.get(id_)
        if trouble is None:
            return 1
        halvings = max(trouble.throttles, trouble.charges - TOGETHER + 1, 0)
        return 1 << min(halvings, MOST_HALVINGS)

    def _decide(self, one: Answered, now_s: float) -> Settling:
        """Return what an answer settles."""
        part, verdict = one.part, one.verdict
        every = range(len(part.indexes))
        lost: dict[int, Failure] = {}
        if one.failure is not None:
            lost = dict.fromkeys(every, one.failure)
        elif verdict.kind is Kind.TAKEN:
            return Settling(part, part.indexes)
        elif verdict.kind is Kind.SORTED:
            lost = {i: _refusal(verdict, said) for i, said in verdict.refused.items()}
        elif verdict.kind is Kind.REFUSED:
            lost = dict.fromkeys(every, _refusal(verdict, verdict.said))
        elif verdict.kind is Kind.TOO_LARGE and len(every) == 1:
            lost = {0: Failure(DeadReason.TOO_LARGE, verdict.status, message=verdict.said)}
        elif verdict.kind is Kind.BAD_KEY and self._is_over(part.request):
            failure = Failure(DeadReason.INVALID_API_KEY, verdict.status, message=verdict.said)
            lost = dict.fromkeys(every, failure)
        elif verdict.kind is Kind.NO_ANSWER and self._charge(part, now_s) and len(every) == 1:
            failure = Failure(DeadReason.AMPLITUDE_FAILING, verdict.status, message=verdict.said)
            lost = {0: failure}
        return Settling(part, (), [_lost(one, index, why) for index, why in lost.items()])

    def _charge(self, part: Part, now_s: float) -> bool:
        """Charge a failure to its request, where others were taken since its first; return whether
        it has had all its tries."""
        trouble = self._trouble(part.request.id)
        if trouble.first_s is None:
            trouble.first_s = now_s
        trouble.charges += self._host.last_success_s > trouble.first_s
        return trouble.charges >= MOST_TRIES

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
            charges = self._troubles[request.id].charges
            until_s = now_s + unknown_delay_s(max(1, charges), self._jitter())
            self._lines.hold(lines if part.indexes else (), until_s, request.id)
            return
        if one.failure is None and one.original is not None:
            self._note_success()
        if verdict.kind is Kind.BUSY:
            self._host.be_busy(verdict.said, now_s + verdict.wait_s)
        elif verdict.kind is Kind.BAD_KEY:
            self._note_bad_key(request, verdict, now_s, waits=bool(part.indexes))
        elif verdict.kind is Kind.TOO_LARGE and part.indexes:
            self._lines.halve(part)
        self._lines.hold(waiting, now_s + verdict.wait_s, request.id)
        if waiting:
            self._trouble(request.id).throttles += 1
        if verdict.kind is Kind.TAKEN:
            self._note_taken(request)

    def _note_taken(self, request: WaitingRequest) -> None:
        self._key_failures.pop(request.api_key, None)
        if self.refused_keys.pop(request.api_key, None):
            _log.info("Amplitude takes an API key again", api_key=request.api_key)

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
            _log.warning(
                "Amplitude refuses an API key: what comes with it waits", said=verdict.said
            )
        self._key_failures[key] += 1
        wait_s = min(LONGEST_KEY_WAIT_S, KEY_WAIT_S * 2 ** min(self._key_failures[key] - 1, 8))
        self._lines.hold_key(key, now_s + wait_s, request.id)

    def _note_failure(self, verdict: Verdict, now_s: float) -> None:
        self._host.failed(verdict.said, now_s, self._jitter())
        if now_s >= self._logged_s + LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "Amplitude does not answer, or somebody else does: it is tried again",
                status=verdict.status,
                said=verdict.said,
                health=self._host.state(now_s),
            )

    def _note_success(self) -> None:
        now_s = loop_time_s()
        if self._host.state(now_s) == OUTAGE:
            _log.info("Amplitude answers again")
            self._logged_s = float("-inf")
        self._host.succeeded(now_s)


def _settle(store: Store, taker: int, settling: Settling, now_ms: int) -> int:
    id_ = settling.part.request.id
    return store.relaying.settle(taker, id_, settling.delivered, settling.lost, now_ms)


def _refusal(verdict: Verdict, said: str) -> Failure:
    return Failure(DeadReason.AMPLITUDE_REFUSED, verdict.status, message=said)


def _lost(one: Answered, index: int, failure: Failure) -> LostEvent:
    """Return an event that Amplitude will not have, as it can be sent again."""
    of_request = one.part.indexes[index]
    if one.original is None:
        return LostEvent(of_request, failure, b"", ORIGIN)
    origin = f"{ORIGIN}{one.original.path}"
    try:
        raw, event = one_event(one.original, of_request), events_of(one.original)[of_request]
    except Exception as fault:  # then all that it came in is kept
        internal_failure(fault, request=one.part.request.id)
        return LostEvent(of_request, failure, one.original.body, origin)
    head = decode_head(event)
    if isinstance(head, BadEvent):
        return LostEvent(of_request, failure, raw, origin)
    user, event_type = head.user_id or head.device_id or "", (head.event_type or "")[:LONGEST_TYPE]
    return LostEvent(of_request, failure, raw, origin, _storable(user), _storable(event_type))


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
