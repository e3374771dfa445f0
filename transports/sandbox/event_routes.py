"""The calls about events: sending, listing, summarizing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl

from amplitude_intercom.transports.sandbox.calls import Call, Done, done
from amplitude_intercom.transports.sandbox.checks import check_metadata
from amplitude_intercom.transports.sandbox.contacts import Contact
from amplitude_intercom.transports.sandbox.refusals import (
    Json,
    Refusal,
    decode_object,
    invalid,
    not_found,
)
from amplitude_intercom.transports.sandbox.workspace import StoredEvent, WorkspaceState

MAX_SECONDS: Final = 10**11  # a Unix time above this is in milliseconds (a choice)
LISTED_EVENTS_S: Final = 90 * 86_400  # ``GET /events`` lists younger ones only (API description)


class EventRoutes:
    """The calls about events, for one workspace."""

    def __init__(self, workspace: WorkspaceState) -> None:
        self._workspace = workspace
        self._contacts = workspace.contacts
        self._rules = workspace.rules

    def send(self, call: Call) -> Done:
        """``POST /events``."""
        sent = decode_object(call.body)
        name, created_at = sent.get("event_name"), sent.get("created_at")
        if not isinstance(name, str) or not name:
            raise Refusal(400, "parameter_missing", "event_name is missing or invalid")
        if type(created_at) is not int or not 0 <= created_at < MAX_SECONDS:
            raise invalid("created_at must be in Unix seconds")
        contact = self._contact_of_event(sent)
        metadata = check_metadata(sent.get("metadata"), self._rules.metadata_keys_kept)
        event = StoredEvent(contact.id, name, created_at, metadata, call.at_s)
        is_new = self._workspace.add_event(event)
        return Done(202, b"", "stored" if is_new else "duplicate", contact.id)

    def _contact_of_event(self, sent: Json) -> Contact:
        """Return an event's contact: by ``id`` before ``user_id`` before ``email`` (help 268)."""
        if sent.get("id"):
            named = self._contacts.by_id.get(str(sent["id"]))
            found = [named] if named else []
        elif sent.get("user_id"):
            found = self._contacts.users_with_external_id(str(sent["user_id"]))
        elif sent.get("email"):
            found = self._contacts.users_with_email(str(sent["email"]))
        else:
            raise Refusal(400, "parameter_missing", "One of id, user_id or email is needed")
        live = [contact for contact in found if contact.state == "live"]
        if not live:
            raise not_found()
        if len(live) > 1:
            text = f"Multiple existing users match this email address {sent.get('email')}"
            raise Refusal(400, "conflict", f"{text} - must be more specific using user_id")
        return live[0]

    def list_events(self, call: Call) -> Done:
        """``GET /events``."""
        asked = dict(parse_qsl(call.query))
        names = {"intercom_user_id": "id", "user_id": "user_id", "email": "email"}
        contact = self._contact_of_event({names[k]: v for k, v in asked.items() if k in names})
        mine = [
            event
            for event in self._workspace.events
            if event.contact_id == contact.id
            and event.created_at > call.at_s - LISTED_EVENTS_S
            and event.stored_at_s <= call.at_s - self._rules.event_lag_s
        ]
        ids = {"intercom_user_id": contact.id, "email": contact.email}
        if contact.external_id:
            ids["user_id"] = contact.external_id
        shown = _summarize(mine, ids) if asked.get("summary") == "true" else _list_of(mine, ids)
        return done(shown, "read", contact.id)


def _list_of(events: list[StoredEvent], ids: Mapping[str, str]) -> Json:
    shown = [
        {
            "type": "event",
            "event_name": event.name,
            "created_at": event.created_at,
            "metadata": event.metadata,
            **ids,
        }
        for event in events
    ]
    return {"type": "event.list", "events": shown}


def _summarize(events: list[StoredEvent], ids: Mapping[str, str]) -> Json:
    times: dict[str, list[int]] = {}
    for event in events:
        times.setdefault(event.name, []).append(event.created_at)
    rows = [
        {
            "name": name,
            "first": _iso(min(when)),
            "last": _iso(max(when)),
            "count": len(when),
            "description": "",
        }
        for name, when in times.items()
    ]
    return {"type": "event.summary", "events": rows, **ids}


def _iso(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
