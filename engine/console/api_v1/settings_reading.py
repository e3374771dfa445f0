"""The settings document, for reading: its table, its text, its versions.

No text and no table is shown with a secret in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.etags import etag
from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.pages import (
    Page,
    PageQuery,
    cursor_of,
    number,
    position_of,
)
from amplitude_intercom.engine.console.api_v1.settings_parts import Access
from amplitude_intercom.engine.console.api_v1.settings_refusals import in_thread
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.document.forms import shown, shown_sync
from amplitude_intercom.engine.document.masking import masked
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.engine.document.tables import Table, index_of_sync, parsed
from amplitude_intercom.engine.document.versions import KeptVersion

AT_ONCE: Final = 2
"""Texts that are read and masked at once: threads are few, and a large text takes long."""


class ShownTable(msgspec.Struct, frozen=True):
    """Settings, with the origin of each secret instead of it. ``version``: of the file.

    ``can_save``: whether the file can be changed here, as far as it is known; it is no part of the
    version.
    """

    settings: dict[str, Any]
    version: str
    path: str
    can_save: bool


class ShownText(msgspec.Struct, frozen=True):
    """The file's text, with ``***`` for its secrets."""

    text: str
    version: str
    path: str
    can_save: bool


class VersionText(msgspec.Struct, frozen=True):
    """A kept version, with ``***`` for the secrets of its text."""

    facts: KeptVersion
    text: str


class SettingsReading:
    """Shows one document."""

    def __init__(self, document: SettingsDocument, access: Access) -> None:
        self._document = document
        self._access = access

    def operations(self) -> list[Operation]:
        """Return the operations."""
        conflict, missing = ProblemType.CONFLICT, ProblemType.NOT_FOUND
        broken = ProblemType.REFUSED_VALUE
        versions, one = "/settings/versions", "/settings/versions/{version}"
        some = (conflict, broken, missing)
        one_version: dict[str, Any] = {"refusals": some, "at_once": AT_ONCE}
        of_sync: dict[str, Any] = {**one_version, "has_etag": True}
        usual: dict[str, Any] = {**of_sync, "refusals": (conflict, broken)}
        return [
            operation("GET", "/settings", self._table, Nothing, ShownTable, **usual),
            operation("GET", "/settings/file", self._text, Nothing, ShownText, **usual),
            operation("GET", versions, self._versions, PageQuery, Page[KeptVersion]),
            operation("GET", one, self._version, Nothing, VersionText, **one_version),
            operation("GET", "/syncs/{sync}/settings", self._sync, Nothing, ShownTable, **of_sync),
        ]

    async def _table(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return all settings of the file, with the origin of each secret instead of it."""
        return await in_thread(lambda: self._shown(shown))

    async def _sync(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return the settings of one sync, as the file has them."""
        name = request.match_info["sync"]

        def show(table: Table) -> Table:
            return shown_sync(table["sync"][index_of_sync(table, name)])

        return await in_thread(lambda: self._shown(show))

    def _shown(self, show: Callable[[Table], Table]) -> ApiAnswer:
        document = self._document.file.read()
        table = show(parsed(document.text))
        said = ShownTable(table, document.version, self._path, self._can_save())
        return ApiAnswer(said, {"ETag": etag(document.version)})

    async def _text(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return the text of the settings file, with `***` for its secrets."""

        def read() -> ApiAnswer:
            document = self._document.file.read()
            said = ShownText(masked(document.text), document.version, self._path, self._can_save())
            return ApiAnswer(said, {"ETag": etag(document.version)})

        return await in_thread(read)

    async def _versions(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the kept versions of the settings file, the newest first."""
        list_name = query.list_name(request.path)
        start = position_of(list_name, query.cursor, number)
        kept = await in_thread(self._document.versions.kept)
        end = start + query.limit
        return ApiAnswer(
            Page(kept[start:end], cursor_of(list_name, str(end)) if len(kept) > end else None)
        )

    async def _version(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return one kept version, with `***` for the secrets of its text."""
        id_ = request.match_info["version"]

        def read() -> VersionText:
            text = self._document.versions.text(id_)
            facts = next((one for one in self._document.versions.kept() if one.id == id_), None)
            if facts is None:  # forgotten since
                raise Problem(ProblemType.NOT_FOUND, "this version is not kept any more")
            return VersionText(facts, masked(text))

        return ApiAnswer(await in_thread(read))

    @property
    def _path(self) -> str:
        return str(self._document.file.path)

    def _can_save(self) -> bool:
        return self._access.settings.settings == "edit" and self._document.file.is_writable()
