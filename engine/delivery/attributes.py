"""What a workspace's contacts have: the data attributes, read when they are first needed.

One attribute that does not exist makes Intercom refuse a whole write (400, reference "Create a
contact"), and one of another type may. So the list is read before the first write, and again when
it has become old; a 400 that names an attribute teaches too. Where the list cannot be had, the 400s
are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import anyio
import msgspec
import structlog

from amplitude_intercom.engine.delivery.calls import (
    Answered,
    Cause,
    NotAnswered,
    NotNow,
    cause_of,
    failure_of,
)
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

_log = structlog.get_logger(__name__)

AGAIN_S: Final = 5.0
"""Until the list is read again where Intercom has not answered."""

MOST_WAIT_S: Final = 5.0
"""How long writes wait for the first list that another one reads, from the first of them on: who
waits has made no call, and keeps turns of others from being chosen."""

MOST_CREATING_S: Final = 1.0
"""How long writes wait for an attribute that is being created for another, for the same reason."""

BEING_CREATED: Final = NotAnswered(
    Cause.FAILED,
    "POST /data_attributes",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "an attribute is being created"),
)
"""Why a write cannot go on now: its user waits some seconds, uncharged."""


class Listed(msgspec.Struct, frozen=True):
    """An entry of the list of data attributes."""

    name: str
    data_type: str = "string"
    custom: bool = False
    archived: bool = False
    api_writable: bool = True


class _List(msgspec.Struct):
    data: list[Listed] = []


_list = msgspec.json.Decoder(_List)


def parse_list(answer: Answer) -> list[Listed] | None:
    """Return the custom attributes of ``GET /data_attributes``, or None where it has none."""
    if answer.status != 200:
        return None
    try:
        return [attribute for attribute in _list.decode(answer.body).data if attribute.custom]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class KnownAttributes:
    """Custom attributes by name, as a list said."""

    def __init__(self, listed: Iterable[Listed]) -> None:
        self._types = {
            attribute.name: attribute.data_type
            for attribute in listed
            if attribute.api_writable and not attribute.archived
        }

    def type_of(self, name: str) -> str | None:
        return self._types.get(name)

    def add(self, name: str, data_type: str) -> None:
        """Take in one that was created."""
        self._types[name] = data_type


class Attributes:
    """One sync's knowledge of its workspace's attributes; names are case-sensitive."""

    def __init__(self, gate: Gate, *, create_missing: bool, refresh_s: float) -> None:
        self._gate = gate
        self._create_missing = create_missing
        self._refresh_s = refresh_s
        self._known: KnownAttributes | None = None
        self._missing: set[str] = set()
        self._read_again_at_s = float("-inf")
        self._waits_until_s: float | None = None
        self._creates_since_s = float("-inf")
        """When the last creation began."""
        self._lock = anyio.Lock()

    def type_of(self, name: str) -> str | None:
        """Return an attribute's type, empty where it is not known; None: there is no such one."""
        if name in self._missing:
            return None
        return self._known.type_of(name) if self._known else ""

    def learn_missing(self, name: str) -> None:
        """Take in that Intercom does not know this one; until the list is read again."""
        self._missing.add(name)

    async def make_ready(self, wanted: Mapping[str, str]) -> None:
        """Read the list if it is due, and create what is missing where that is wanted.

        ``wanted`` are the attributes that are to be written, with the types that would suit.

        Raises:
            NotNow: whether one could be created is not known.
        """
        if wanted and anyio.current_time() >= self._read_again_at_s:
            if self._lock.locked():
                await self._wait_for_the_first()
            else:
                async with self._lock:
                    await self._read()
        if self._create_missing and self._known:
            for name, data_type in wanted.items():
                if self.type_of(name) is None and name not in self._missing:
                    await self._create_alone(name, data_type)

    async def _wait_for_the_first(self) -> None:
        """Wait while somebody reads the list for the first time; with an old one all can go on."""
        now_s = anyio.current_time()
        if self._known is not None:
            return
        if self._waits_until_s is None:
            self._waits_until_s = now_s + MOST_WAIT_S
        with anyio.move_on_after(max(0.0, self._waits_until_s - now_s)):
            async with self._lock:
                pass

    async def _read(self) -> None:
        """Read the list; where Intercom has not answered, it is read again soon."""
        outcome = await self._ask(intercom.list_attributes())
        answer = outcome.answer if isinstance(outcome, Answered) else None
        listed = parse_list(answer) if answer else None
        again_s = self._refresh_s
        if listed is not None:
            self._known = KnownAttributes(listed)
            self._missing.clear()
        else:
            text = "the list of data attributes cannot be read: values go out as they are"
            _log.warning(text, cause=_why(outcome))
            again_s = again_s if answer else min(again_s, AGAIN_S)
        self._read_again_at_s = anyio.current_time() + again_s

    async def _create_alone(self, name: str, data_type: str) -> None:
        """Create an attribute once nobody else creates one; that is not waited for for long.

        Raises:
            NotNow: somebody does, or it has no answer.
        """
        wait_s = max(0.0, self._creates_since_s + MOST_CREATING_S - anyio.current_time())
        if self._lock.locked() and not wait_s:
            raise NotNow(BEING_CREATED)
        try:
            with anyio.fail_after(wait_s or None):
                await self._lock.acquire()
        except TimeoutError:
            raise NotNow(BEING_CREATED) from None
        try:
            self._creates_since_s = anyio.current_time()
            await self._create(name, data_type)
        finally:
            self._lock.release()

    async def _create(self, name: str, data_type: str) -> None:
        if self._known is None or self._known.type_of(name) is not None:
            return
        outcome = await self._ask(intercom.create_attribute(name, data_type))
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        answer = outcome.answer if isinstance(outcome, Answered) else None
        if answer is not None and answer.status == 200:
            self._known.add(name, data_type)
            _log.info("attribute created", name=name, data_type=data_type)
        else:
            self.learn_missing(name)
            _log.warning("attribute not created", name=name, cause=_why(outcome))

    async def _ask(self, request: intercom.Request) -> Answered | NotAnswered | None:
        """Ask for something without which all can go on; None: a fault of ours."""
        try:
            return await self._gate.call(request, optional=True)
        except Exception as fault:
            internal_failure(fault, call=request.path)
            return None


def _why(outcome: Answered | NotAnswered | None) -> str:
    """Return what has come of a call, in a few words."""
    if isinstance(outcome, Answered):
        return cause_of(failure_of(outcome.answer))
    if outcome is None:
        return "a fault of this program"
    return cause_of(outcome.failure) if outcome.failure else f"not sent: {outcome.cause.name}"
