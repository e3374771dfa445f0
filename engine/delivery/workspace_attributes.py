"""The data attributes of a workspace's contacts, read when they are first needed.

One attribute that does not exist makes Intercom refuse a whole write (400, reference "Create a
contact"), and one of another type may. So the list is read before the first write, and again when
it has become old, beside what goes on; a 400 that names an attribute teaches too. Where the list
cannot be had, the 400s are all there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Final

import anyio
import msgspec
import structlog

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.calls import (
    Answered,
    Calls,
    Cause,
    NotAnswered,
    NotNow,
    TurnCalls,
    cause_of,
    failure_of,
)
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

_log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 60.0
"""Until the list is read again where Intercom has not answered."""

BELIEVED_MISSING_S: Final = 600.0
"""How long it is believed that an attribute is not there, or cannot be created, where no list says
otherwise."""

MOST_WAIT_S: Final = 5.0
"""How long writes wait for the first list, from the first of them on; then their values go out as
they are. A turn that waits has made no call, and keeps other turns from being chosen."""

MOST_CREATING_S: Final = 1.0
"""How long writes wait for an attribute that is being created for another, for the same reason."""

BEING_CREATED: Final = NotAnswered(
    Cause.FAILED,
    "POST /data_attributes",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "an attribute is being created"),
)
"""The evidence of a write that cannot go on now: its user waits some seconds, uncharged."""


class Option(msgspec.Struct, frozen=True):
    """A value that a list attribute takes, as it is given at its creation."""

    value: str = ""


class Listed(msgspec.Struct, frozen=True):
    """An entry of the list of data attributes. ``options`` are texts (API description 2.16), or as
    they are given at its creation."""

    name: str
    data_type: str = "string"
    custom: bool = False
    archived: bool = False
    api_writable: bool = True
    options: list[str | Option] | None = None


class _Named(msgspec.Struct):
    name: str


class _AttributeList(msgspec.Struct):
    data: list[msgspec.Raw] = []


_list = msgspec.json.Decoder(_AttributeList)
_listed = msgspec.json.Decoder(Listed)
_named = msgspec.json.Decoder(_Named)


def parse_list(answer: Answer) -> list[Listed] | None:
    """Return the custom attributes of ``GET /data_attributes``, but for those that cannot be read;
    None where there is no such list."""
    if answer.status != 200:
        return None
    try:
        found = _list.decode(answer.body).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    listed = map(_parse_one, found)
    return [attribute for attribute in listed if attribute is not None and attribute.custom]


def _parse_one(raw: msgspec.Raw) -> Listed | None:
    """Return an entry; of one that cannot be read the name alone, for it is there."""
    # An entry of an unknown form must not hide the attribute: taken for missing, it would be
    # created, or left out for all users.
    for decoder in (_listed, _named):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = decoder.decode(raw)
            return found if isinstance(found, Listed) else Listed(found.name, "", custom=True)
    return None


class KnownAttributes:
    """Custom attributes by name, as a list said."""

    def __init__(self, listed: Iterable[Listed]) -> None:
        self._listed = {
            attribute.name: attribute
            for attribute in listed
            # Writing one of these may be refused (400), with the whole update. So they count as
            # missing.
            if attribute.api_writable and not attribute.archived
        }

    def type_of(self, name: str) -> str | None:
        found = self._listed.get(name)
        return found.data_type if found else None

    def options_of(self, name: str) -> Collection[str]:
        found = self._listed.get(name)
        options = (found.options if found else None) or ()
        return [option if isinstance(option, str) else option.value for option in options]

    def listed(self) -> list[Listed]:
        """Return those that can be written, by name."""
        return [self._listed[name] for name in sorted(self._listed)]

    def add(self, name: str, data_type: str) -> None:
        """Take in one that was created."""
        self._listed[name] = Listed(name, data_type, custom=True)


class WorkspaceAttributes:
    """A workspace's attributes, as far as they are known; names are case-sensitive."""

    def __init__(self, gate: Calls) -> None:
        self._gate = gate
        self._known: KnownAttributes | None = None
        self._missing: dict[str, float] = {}
        """Names that Intercom does not know, and until when that is believed."""
        self._tried: dict[str, float] = {}
        """Names that were created, or could not be, and until when that is not tried again."""
        self._keeping: asyncio.Task[None] | None = None
        self._is_had = asyncio.Event()
        self._is_wanted = asyncio.Event()
        """Set when the list is to be read again once it has become old."""
        self._waits_until_s: float | None = None
        self._creating = anyio.Lock()
        self._creates_since_s = float("-inf")
        """When the last creation began."""

    def type_of(self, name: str) -> str | None:
        """Return an attribute's type, empty where it is not known; None: there is no such one."""
        # A 400 is newer than the list.
        if name in self._missing:
            return None
        return self._known.type_of(name) if self._known else ""

    def listed(self) -> list[Listed] | None:
        """Return those of the list that can be written; None: it is not read yet."""
        return None if self._known is None else self._known.listed()

    @property
    def missing(self) -> Collection[str]:
        """The names that Intercom does not know, as far as that was met."""
        return self._missing.keys()

    def options_of(self, name: str) -> Collection[str]:
        """Return the values that an attribute takes; none: any of its type."""
        return self._known.options_of(name) if self._known else ()

    def learn_missing(self, name: str) -> None:
        """Take in that Intercom does not know this one; until the list is read again, or for some
        minutes."""
        # Bounded, because somebody may create it in Intercom meanwhile, and the list may not be
        # readable.
        self._missing[name] = loop_time_s() + BELIEVED_MISSING_S
        self._is_wanted.set()

    def learn_created(self, name: str, data_type: str) -> None:
        """Take in that an attribute is there now; ``data_type``: empty: not known."""
        # The next list may not have it yet, and would have it created again.
        self._tried[name] = loop_time_s() + BELIEVED_MISSING_S
        self._missing.pop(name, None)
        if self._known:
            self._known.add(name, data_type)
        _log.info("attribute created", name=name, data_type=data_type)

    def stop(self) -> None:
        """Keep the list no longer, until it is needed again."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None

    async def make_ready(
        self, calls: TurnCalls, *, creates: Mapping[str, str], refresh_s: float
    ) -> None:
        """Have the list kept up to date in the background; the first one is waited for, for at most
        ``MOST_WAIT_S``.

        ``creates``: attributes that are created where they are missing, with the types that would
        suit. ``refresh_s``: how long a list is good for.

        Raises:
            NotNow: whether an attribute could be created is not known.
        """
        self._gate = calls.gate
        now_s = loop_time_s()
        # Expired here, because `type_of` is called in the spool's thread, without a loop's clock.
        for believed in (self._missing, self._tried):
            for name in [name for name, end_s in believed.items() if end_s <= now_s]:
                del believed[name]
        # Started by the first write and not with the workspace: a sync that writes no attributes
        # needs no list, and its token may lack the scope for it.
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep(refresh_s))
            self._waits_until_s = self._waits_until_s or now_s + MOST_WAIT_S
        self._is_wanted.set()
        # From the first write on, for all of them: each write waiting for itself would hold up
        # turns again and again while the list cannot be had.
        wait_s = (self._waits_until_s or now_s) - now_s
        if not self._is_had.is_set() and wait_s > 0:
            with anyio.move_on_after(wait_s):
                await self._is_had.wait()
        # A crowd of first updates asks for the same ones: the first of them creates each, and the
        # others find it there.
        for name, data_type in creates.items():
            if self.type_of(name) is None and name not in self._tried:
                await self._create_alone(name, data_type, calls)

    async def _keep(self, refresh_s: float) -> None:
        """Read the list, and again where it has become old and is wanted since; for ever."""
        failures = 0
        while True:
            # Before the read: a 400 that comes during it may be newer than its answer.
            self._is_wanted.clear()
            try:
                is_answered = await self._read()
            # The list is a convenience: without it values go out as they are, and no record must
            # pay for a fault here.
            except Exception as fault:
                internal_failure(fault, call="GET /data_attributes")
                is_answered = False
            # Also without an answer: writes wait for the first try and not for its success.
            self._is_had.set()
            failures = 0 if is_answered else failures + 1
            if not is_answered:
                self._is_wanted.set()
            pause_s = probe_delay_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter=1.0)
            await anyio.sleep(min(refresh_s, pause_s) if failures else refresh_s)
            await self._is_wanted.wait()

    async def _read(self) -> bool:
        """Read the list; return whether Intercom has answered."""
        outcome = await self._gate.call(intercom.list_attributes(), optional=True)
        answer = outcome.answer if isinstance(outcome, Answered) else None
        listed = parse_list(answer) if answer else None
        if listed is not None:
            self._known = KnownAttributes(listed)
            # The list says it better than old refusals: an attribute that was created since is in
            # it.
            self._missing.clear()
        else:
            text = "the list of data attributes cannot be read: values go out as they are"
            _log.warning(text, cause=_why(outcome))
        return answer is not None

    async def _create_alone(self, name: str, data_type: str, calls: TurnCalls) -> None:
        """Create an attribute, after at most ``MOST_CREATING_S`` for another creation.

        Raises:
            NotNow: another one is still being created, or the call has no answer.
        """
        wait_s = max(0.0, self._creates_since_s + MOST_CREATING_S - loop_time_s())
        # The creation hangs: each turn that waited for it would keep a slot from other users.
        if self._creating.locked() and not wait_s:
            raise NotNow(BEING_CREATED)
        try:
            with anyio.fail_after(wait_s or None):
                await self._creating.acquire()
        except TimeoutError:
            raise NotNow(BEING_CREATED) from None
        try:
            self._creates_since_s = loop_time_s()
            await self._create(name, data_type, calls)
        finally:
            self._creating.release()

    async def _create(self, name: str, data_type: str, calls: TurnCalls) -> None:
        """Create an attribute, unless it is there by now.

        Raises:
            NotNow: the call has no answer.
        """
        if self.type_of(name) is not None or name in self._tried:
            return
        answer = await calls.call(intercom.create_attribute(name, data_type), optional=True)
        if answer.status == 200 or intercom.says_attribute_is_there(answer):
            self.learn_created(name, data_type if answer.status == 200 else "")
        else:
            self._tried[name] = loop_time_s() + BELIEVED_MISSING_S
            self.learn_missing(name)
            _log.warning("attribute not created", name=name, cause=cause_of(failure_of(answer)))


def _why(outcome: Answered | NotAnswered) -> str:
    """Return the outcome of a call in a few words."""
    if isinstance(outcome, Answered):
        return cause_of(failure_of(outcome.answer))
    return cause_of(outcome.failure) if outcome.failure else f"not sent: {outcome.cause.name}"
