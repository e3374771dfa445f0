"""``preview``: the requests that each event would lead to, without sending any."""

from __future__ import annotations

from typing import Any

import msgspec

from amplitude_intercom.engine.clients import client_of
from amplitude_intercom.engine.commands.relays import relay_notes
from amplitude_intercom.engine.commands.running import OK, print_json
from amplitude_intercom.engine.commands.sample_events import read_events
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes, parse_list
from amplitude_intercom.engine.errors import EngineError, SettingsError
from amplitude_intercom.engine.previewing import Foreseen, Preview
from amplitude_intercom.engine.settings import Intercom, Settings
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.errors import NoAnswer


async def preview(
    settings: Settings, path: str, *, sync: str | None = None, live: bool = False
) -> int:
    """Print one JSON line for each event and sync. Reads ``-`` from standard input.

    ``live``: read the workspace's attributes first; no other call is made.

    Raises:
        SettingsError: no such sync.
        OSError: the file cannot be read.
        BadFile: the file is damaged, or holds no events; the events before that are printed.
        EngineError: the workspace cannot be asked.
    """
    syncs = [s for s in settings.sync if sync in (None, s.name)]
    if not syncs:
        raise SettingsError(f"--sync: there is no sync `{sync}`")
    for note in relay_notes(settings):
        say(f"note: {note}", stderr=True)
    previews = [Preview(s, await attributes_of(s.intercom) if live else None) for s in syncs]
    for number, head, raw in read_events(path, settings.largest_file_event_bytes):
        for preview in previews:
            print_json({"line": number, **printed(preview.sync.name, preview.judge(head, raw))})
    return OK


def printed(sync: str, foreseen: Foreseen) -> dict[str, Any]:
    """Return what would come of an event, for JSON."""
    answer: dict[str, Any] = {
        "sync": sync,
        "verdict": foreseen.verdict,
        "reason": foreseen.reason,
        "requests": [
            {"method": r.method, "path": r.path, "body": msgspec.Raw(r.body or b"null")}
            for r in foreseen.requests
        ],
    }
    if foreseen.adjustments:
        answer["adjustments"] = list(map(str, foreseen.adjustments))
    if foreseen.selectors:
        answer["selectors"] = foreseen.selectors
    if foreseen.message:
        answer["message"] = foreseen.message
    return answer


async def attributes_of(settings: Intercom) -> KnownAttributes:
    """Ask a workspace for its custom attributes.

    Raises:
        EngineError: it does not answer, or not with a list.
    """
    async with client_of(settings) as client:
        try:
            answer = await client.send(intercom.list_attributes())
        except NoAnswer as error:
            raise EngineError(f"Intercom does not answer: {error}") from None
    listed = parse_list(answer)
    if listed is None:
        said = intercom.parse_error(answer).message
        raise EngineError(f"Intercom gives no list of attributes: {answer.status} {said}")
    return KnownAttributes(listed)
