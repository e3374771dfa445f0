"""Changes of the settings document: looked at, saved, and followed by the daemon.

Rules
=====
1. A change names the version of the file that it changes (``If-Match``).
2. A saved change is loaded at once. Where the daemon cannot follow it, the file has it, the daemon
   goes on as before, and the answer says why.
3. One change at a time, and none with ``admin.settings = "view"``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.etags import etag, refuse_other
from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.settings_parts import MOST_TEXT_BYTES, Access, Reloads
from amplitude_intercom.engine.console.api_v1.settings_refusals import (
    Form,
    in_thread,
    refuse_unfit,
)
from amplitude_intercom.engine.console.guard import CHANGE, SENDER, RequestChange
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.document.files import Document
from amplitude_intercom.engine.document.proposals import Proposal
from amplitude_intercom.engine.document.settings_document import Saved, SettingsDocument
from amplitude_intercom.engine.document.versions import KeptVersion
from amplitude_intercom.engine.errors import EngineError
from amplitude_intercom.engine.settings_effects import Effects
from amplitude_intercom.transports.errors import Refused

Note = Annotated[str, msgspec.Meta(max_length=500)]

MOST_TOKEN_CHARACTERS: Final = 65_536

AT_ONCE: Final = 2
"""Changes of one kind that are read and held at once; one of all is made."""


class TextChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another text of the file; ``***`` keeps the secret that is there."""

    text: str
    note: Note = ""


class SyncForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of one sync; ``{"set": true}`` keeps the secret that is there."""

    settings: Form
    note: Note = ""


class SyncSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a sync is delivered."""

    enabled: bool
    note: Note = ""


class TypedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An access token, or the ``file:`` of one that was typed before."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_TOKEN_CHARACTERS)]
    note: Note = ""


class Restoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request to bring a version back."""

    note: Note = ""


class SavedChange(msgspec.Struct, frozen=True):
    """A saved change. ``version``: of the file now. ``kept``: its version among the kept ones.

    ``reloaded``: what the daemon has changed; None: it goes on as before, for the reason
    ``refused``.
    """

    version: str
    kept: KeptVersion | None
    reloaded: Effects | None
    refused: str = ""


class SettingsChanges:
    """Changes one document, and has the daemon follow."""

    def __init__(
        self,
        document: SettingsDocument,
        reload: Reloads,
        access: Access,
    ) -> None:
        self._document = document
        self._reload = reload
        self._access = access
        self._one_at_a_time = asyncio.Lock()

    def operations(self) -> list[Operation]:
        """Return the operations."""
        refusals = (
            ProblemType.NOT_FOUND,
            ProblemType.CONFLICT,
            ProblemType.CHANGED_MEANWHILE,
            ProblemType.IF_MATCH_NEEDED,
            ProblemType.SETTINGS_ARE_VIEWED,
        )
        saves: dict[str, Any] = {
            "refusals": refusals,
            "needs_match": True,
            "has_etag": True,
            "at_once": AT_ONCE,
        }
        adds = {**saves, "status": 201, "has_location": True}
        sync = "/syncs/{sync}"
        whole = {**saves, "most_bytes": MOST_TEXT_BYTES, "at_once": 1}
        secret = {**saves, "is_secret": True}
        token, restore = f"{sync}/secrets/access_token", "/settings/versions/{version}/restore"
        return [
            operation("PUT", "/settings/file", self._text, TextChange, SavedChange, **whole),
            operation("POST", restore, self._restore, Restoring, SavedChange, **saves),
            operation("POST", "/syncs", self._new_sync, SyncForm, SavedChange, **adds),
            operation("PATCH", sync, self._switch, SyncSwitch, SavedChange, **saves),
            operation("DELETE", sync, self._remove, Nothing, SavedChange, **saves),
            operation("PUT", f"{sync}/settings", self._sync, SyncForm, SavedChange, **saves),
            operation("PUT", token, self._token, TypedToken, SavedChange, **secret),
        ]

    # --- saving ---------------------------------------------------------------------------

    async def _text(self, request: web.Request, change: TextChange) -> ApiAnswer:
        """Replace the text of the settings file, and load it."""
        propose = self._document.propose
        return await self._saved(
            request, lambda base: propose.with_text(base, change.text), "the file", change.note
        )

    async def _restore(self, request: web.Request, change: Restoring) -> ApiAnswer:
        """Bring a kept version of the settings file back, and load it."""
        id_ = request.match_info["version"]
        return await self._saved(
            request,
            lambda base: self._document.with_version(base, id_),
            f"version {id_}",
            change.note,
        )

    async def _new_sync(self, request: web.Request, change: SyncForm) -> ApiAnswer:
        """Add a sync, and load the settings."""
        refuse_unfit(change.settings)
        name = change.settings.get("name")
        answer = await self._saved(
            request,
            lambda base: self._document.propose.with_new_sync(base, change.settings),
            f"new sync {name}",
            change.note,
        )
        return ApiAnswer(answer.value, {**answer.headers, "Location": f"{API_ROOT}/syncs/{name}"})

    async def _switch(self, request: web.Request, change: SyncSwitch) -> ApiAnswer:
        """Enable or disable a sync, and load the settings."""
        name, propose = request.match_info["sync"], self._document.propose
        return await self._saved(
            request,
            lambda base: propose.with_changed_sync(
                base, name, lambda table: table.update(enabled=change.enabled)
            ),
            f"sync {name} {'enabled' if change.enabled else 'disabled'}",
            change.note,
        )

    async def _remove(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Remove a sync from the settings, and load them. Its waiting events stay in the spool."""
        name = request.match_info["sync"]
        return await self._saved(
            request,
            lambda base: self._document.propose.without_sync(base, name),
            f"sync {name} removed",
        )

    async def _sync(self, request: web.Request, change: SyncForm) -> ApiAnswer:
        """Replace the settings of a sync, and load them."""
        refuse_unfit(change.settings)
        name, propose = request.match_info["sync"], self._document.propose
        return await self._saved(
            request,
            lambda base: propose.with_sync(base, name, change.settings),
            f"sync {name}",
            change.note,
        )

    async def _token(self, request: web.Request, change: TypedToken) -> ApiAnswer:
        """Replace the access token of a sync, and load it. It is never shown again."""
        name, propose = request.match_info["sync"], self._document.propose
        return await self._saved(
            request,
            lambda base: propose.with_token(base, name, change.token),
            f"access token of {name}",
            change.note,
        )

    async def _saved(
        self,
        request: web.Request,
        propose: Callable[[Document], Proposal],
        what: str,
        note: str = "",
    ) -> ApiAnswer:
        """Save a change of the version that the request names, and have the daemon follow."""
        if self._access.settings.settings == "view":
            raise Problem(ProblemType.SETTINGS_ARE_VIEWED)
        who = request[SENDER].who

        def save() -> tuple[str, Saved]:
            base = self._document.file.read()
            refuse_other(request, base.version)
            return base.version, self._document.save(propose(base), who=who, note=note)

        async with self._one_at_a_time:
            before, saved = await in_thread(save)
            after = saved.document.version
            versions = {"before": before, "after": after}
            request[CHANGE] = RequestChange("settings saved", what, versions)
            reloaded, refused = await self._followed(who)
        return ApiAnswer(SavedChange(after, saved.kept, reloaded, refused), {"ETag": etag(after)})

    async def _followed(self, who: str) -> tuple[Effects | None, str]:
        """Have the daemon follow the file; return what that changed, or why it did not."""
        try:
            return await self._reload.reload(who), ""
        except (EngineError, Refused) as error:
            return None, str(error)
