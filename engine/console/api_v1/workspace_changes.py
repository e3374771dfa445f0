"""Changes of workspaces: an attribute is created in Intercom, an event name is forgotten here.

Rules
=====
1. An attribute is created by the gate of the token, once. Without an answer nobody knows whether it
   is there, and the answer says so.
2. A forgotten name counts here no more. What Intercom counts is Intercom's: the answer says so.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.workspace_parts import (
    Attribute,
    EngineWithTokens,
    WorkspaceToken,
    attribute_of,
    token_named,
)
from amplitude_intercom.engine.console.api_v1.workspace_questions import silence_of
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.problems import Problem, ProblemType, not_now, refused_value
from amplitude_intercom.engine.delivery.calls import Answered, Cause, cause_of, failure_of
from amplitude_intercom.engine.delivery.workspace_attributes import Listed
from amplitude_intercom.engine.rules.contacts import STANDARD_TYPES
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

MOST_S: Final = 10.0
"""The longest that a change is waited for."""

MOST_NAME: Final = 190
"""Characters of an attribute's name."""

FORGOTTEN: Final = (
    "the name counts no more here, so another one may be sent. Intercom itself counts each name"
    " that is not archived there: archive it there, too, or Intercom will refuse the 121st. If the"
    " name is sent again, it counts again"
)


class NewAttribute(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data attribute of contacts, to be created."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_NAME)]
    data_type: Literal["string", "integer", "float", "boolean", "date"]


class ForgottenEventName(msgspec.Struct, frozen=True):
    """An event name that counts no more here. ``count`` of at most ``limit`` are used."""

    name: str
    count: int
    limit: int
    means: str


class WorkspaceChanges:
    """Changes the workspaces of one engine's tokens."""

    def __init__(self, engine: EngineWithTokens, most_s: float = MOST_S) -> None:
        self._engine = engine
        self._most_s = most_s

    def operations(self) -> list[Operation]:
        """Return the operations."""
        missing, conflict = ProblemType.NOT_FOUND, ProblemType.CONFLICT
        one = "/workspaces/{workspace}"
        return [
            operation(
                "POST",
                f"{one}/attributes",
                self._create,
                NewAttribute,
                Attribute,
                status=201,
                refusals=(missing, conflict),
                has_location=True,
            ),
            operation(
                "DELETE",
                f"{one}/event-names/{{name}}",
                self._forget,
                Nothing,
                ForgottenEventName,
                refusals=(missing, conflict),
            ),
        ]

    async def _create(self, request: web.Request, new: NewAttribute) -> ApiAnswer:
        """Create a data attribute of contacts in Intercom, with a call of the token's allowance."""
        id_, token = token_named(self._engine, request)
        known = token.workspace.attributes if token.workspace else None
        if new.name in STANDARD_TYPES:
            raise Problem(ProblemType.CONFLICT, f"{new.name} is a field that every contact has")
        if known is not None and known.listed() is not None and known.type_of(new.name) is not None:
            raise Problem(ProblemType.CONFLICT, f"there is an attribute {new.name} already")
        answer = await self._answer(token, new)
        if answer.status != 200:
            raise _refusal(answer)
        if known is not None:
            known.learn_created(new.name, new.data_type)
        what = f"{new.name} ({new.data_type}) in {id_}"
        request[CHANGE] = RequestChange("attribute created", what)
        made = attribute_of(self._engine, Listed(new.name, new.data_type), token.syncs)
        return ApiAnswer(made, {"Location": f"{API_ROOT}/workspaces/{id_}/attributes"})

    async def _answer(self, token: WorkspaceToken, new: NewAttribute) -> Answer:
        """Return Intercom's answer.

        Raises:
            Problem: there is none.
        """
        call = intercom.create_attribute(new.name, new.data_type)
        try:
            async with asyncio.timeout(self._most_s):
                outcome = await token.gate.call(call, optional=True)
        except TimeoutError:
            raise _unknown(f"no answer within {self._most_s:g} s") from None
        if isinstance(outcome, Answered):
            return outcome.answer
        failure = outcome.failure
        if failure is not None and failure.status == 429:
            raise not_now(f"Intercom has answered {cause_of(failure)}")
        if outcome.cause is Cause.FAILED:
            raise _unknown(cause_of(failure) if failure else "no answer")
        raise not_now(silence_of(token.gate, "Intercom", outcome).text)

    async def _forget(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Forget an event name that counts against the most that a workspace takes. It changes
        nothing in Intercom."""
        id_, token = token_named(self._engine, request)
        name = request.match_info["name"]
        if token.workspace is None:
            text = "Intercom has not said yet which workspace the token is for"
            raise Problem(ProblemType.CONFLICT, text)
        names = token.workspace.names
        try:
            async with asyncio.timeout(self._most_s):
                is_known = await names.forget(name)
        except TimeoutError:
            raise not_now("the disk takes no change") from None
        if not is_known:
            raise Problem(ProblemType.NOT_FOUND, f"no event name {name} was sent to {id_}")
        request[CHANGE] = RequestChange("event name forgotten", f"{name} of {id_}")
        return ApiAnswer(ForgottenEventName(name.lower(), names.count, MAX_EVENT_TYPES, FORGOTTEN))


def _unknown(why: str) -> Problem:
    return not_now(f"{why}: whether it was created is not known, the next list will show it")


def _refusal(answer: Answer) -> Problem:
    """Return Intercom's refusal of an attribute."""
    said = f"Intercom answers {cause_of(failure_of(answer))}"
    if intercom.says_attribute_is_there(answer) or answer.status in (401, 403, 409):
        return Problem(ProblemType.CONFLICT, said)
    return refused_value("/name", said)
