"""What each call of Intercom's API does to a sandbox's workspace, once it was let in.

Intercom's answers, as texts and codes, are here and in ``transports.sandbox.workspace``; the grades
of the facts are explained there.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from amplitude_intercom.transports.sandbox.workspace import (
    Attributes,
    Contact,
    Directory,
    Json,
    Refusal,
    StoredEvent,
    check_metadata,
    compile_filter,
    conflict,
    decode_object,
    invalid,
    not_found,
    page_of,
    render_contact,
    standard_fields,
)

MAX_SECONDS: Final = 10**11  # a Unix time above this is in milliseconds (a choice)
LISTED_EVENTS_S: Final = 90 * 86_400  # ``GET /events`` lists younger ones only (API description)

_NOT_RESTORABLE: Final = {"deleted": "marked for permanent deletion", "merged": "merged"}
_SORT_ORDERS: Final = ("ascending", "descending")


class Call(NamedTuple):
    """A call on its way to a route; ``key`` is the variable part of its path."""

    at_s: float
    body: bytes
    query: str
    key: str


class Done(NamedTuple):
    """What became of a call."""

    status: int
    body: bytes
    outcome: str
    contact_id: str = ""
    headers: Mapping[str, str] = {}


def _done(body: object, outcome: str, contact_id: str = "") -> Done:
    return Done(200, msgspec.json.encode(body), outcome, contact_id)


def _route_of(path: str) -> tuple[str, str]:
    """Return a path with ``{}`` in place of its variable part, and that part."""
    match path.split("/"):
        case ["", "contacts", "find_by_external_id", key]:
            return "/contacts/find_by_external_id/{}", unquote(key)
        case ["", "contacts", key]:
            return "/contacts/{}", unquote(key)
        case ["", "contacts", key, action]:
            return f"/contacts/{{}}/{action}", unquote(key)
    return path, ""


def _are_duplicates(one: Contact, other: Contact) -> bool:
    """Return whether a merge needs no permission: same e-mail or phone (API description)."""
    same_email = bool(one.email) and one.email.lower() == other.email.lower()
    return same_email or (one.phone is not None and one.phone == other.phone)


def _sort(contacts: list[Contact], sort: object) -> None:
    if not isinstance(sort, dict):
        return
    field, order = str(sort.get("field")), sort.get("order", "descending")
    if order not in _SORT_ORDERS:
        text = f"Invalid sort order '{order}'. Must be one of: ascending, descending"
        raise Refusal(400, "invalid_sort_order", text)
    contacts.sort(key=lambda each: str(getattr(each, field, "")), reverse=order == "descending")


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


class Rules(msgspec.Struct, frozen=True):
    """What differs between workspaces, or is not known for sure."""

    max_event_names: int = 120
    metadata_keys_kept: int = 20
    strict_email: bool = False
    region: str = "US"
    teammates: Collection[str] = ("1",)
    keeps_duplicates: bool = False
    event_lag_s: float = 0.0
    workspace_id: str = "sandbox1"


class Routes:
    """What each call does to the workspace, once it was let in."""

    def __init__(
        self, rules: Rules, contacts: Directory, attributes: Attributes, rng: random.Random
    ) -> None:
        self.rules = rules
        self.contacts = contacts
        self.attributes = attributes
        self.events: list[StoredEvent] = []
        self.event_names: set[str] = set()
        self._stored: set[tuple[str, str, int]] = set()
        self._rng = rng
        self._table: dict[tuple[str, str], Callable[[Call], Done]] = {
            ("POST", "/events"): self._send_event,
            ("GET", "/events"): self._list_events,
            ("POST", "/contacts"): self._create,
            ("GET", "/contacts"): self._list,
            ("POST", "/contacts/search"): self._search,
            ("POST", "/contacts/merge"): self._merge,
            ("GET", "/contacts/find_by_external_id/{}"): self._find,
            ("GET", "/contacts/{}"): self._get,
            ("PUT", "/contacts/{}"): self._update,
            ("DELETE", "/contacts/{}"): self._delete,
            ("POST", "/contacts/{}/archive"): self._archive,
            ("POST", "/contacts/{}/unarchive"): self._unarchive,
            ("GET", "/data_attributes"): self._list_attributes,
            ("POST", "/data_attributes"): self._create_attribute,
            ("GET", "/me"): self._me,
        }

    def run(self, at_s: float, method: str, path: str, body: bytes) -> Done:
        """Carry out a call.

        Raises:
            Refusal: a rule turns it down; 404 also for a method that its path does not have.
        """
        path, _, query = path.partition("?")
        key = ""
        route = self._table.get((method, path))
        if route is None:
            path, key = _route_of(path)
            route = self._table.get((method, path))
        if route is None:
            raise not_found("Resource Not Found")
        return route(Call(at_s, body, query, key))

    # events

    def _send_event(self, call: Call) -> Done:
        sent = decode_object(call.body)
        name, created_at = sent.get("event_name"), sent.get("created_at")
        if not isinstance(name, str) or not name:
            raise Refusal(400, "parameter_missing", "event_name is missing or invalid")
        if type(created_at) is not int or not 0 <= created_at < MAX_SECONDS:
            raise invalid("created_at must be in Unix seconds")
        contact = self._contact_of_event(sent)
        metadata = check_metadata(sent.get("metadata"), self.rules.metadata_keys_kept)
        self._count_name(name.lower())
        identity = (contact.id, name.lower(), created_at)
        if identity in self._stored and not self.rules.keeps_duplicates:
            return Done(202, b"", "duplicate", contact.id)
        self._stored.add(identity)
        self.events.append(StoredEvent(contact.id, name, created_at, metadata, call.at_s))
        return Done(202, b"", "stored", contact.id)

    def _contact_of_event(self, sent: Json) -> Contact:
        """Return whom an event is about: ``id`` before ``user_id`` before ``email`` (help 268)."""
        if sent.get("id"):
            named = self.contacts.by_id.get(str(sent["id"]))
            found = [named] if named else []
        elif sent.get("user_id"):
            found = self.contacts.users_with_external_id(str(sent["user_id"]))
        elif sent.get("email"):
            found = self.contacts.users_with_email(str(sent["email"]))
        else:
            raise Refusal(400, "parameter_missing", "One of id, user_id or email is needed")
        live = [contact for contact in found if contact.state == "live"]
        if not live:
            raise not_found()
        if len(live) > 1:
            text = f"Multiple existing users match this email address {sent.get('email')}"
            raise Refusal(400, "conflict", f"{text} - must be more specific using user_id")
        return live[0]

    def _count_name(self, name: str) -> None:
        if name in self.event_names:
            return
        if len(self.event_names) >= self.rules.max_event_names:
            limit = self.rules.max_event_names
            raise Refusal(422, "422", f"Cannot have more than {limit} active event names")
        self.event_names.add(name)

    def _list_events(self, call: Call) -> Done:
        asked = dict(parse_qsl(call.query))
        names = {"intercom_user_id": "id", "user_id": "user_id", "email": "email"}
        contact = self._contact_of_event({names[k]: v for k, v in asked.items() if k in names})
        mine = [
            event
            for event in self.events
            if event.contact_id == contact.id
            and event.created_at > call.at_s - LISTED_EVENTS_S
            and event.stored_at_s <= call.at_s - self.rules.event_lag_s
        ]
        ids = {"intercom_user_id": contact.id, "email": contact.email}
        if contact.external_id:
            ids["user_id"] = contact.external_id
        shown = _summarize(mine, ids) if asked.get("summary") == "true" else _list_of(mine, ids)
        return _done(shown, "read", contact.id)

    # contacts

    def _fields(self, sent: Json) -> Json:
        fields = standard_fields(sent)
        owner = fields.get("owner_id")
        if owner is not None and owner not in self.rules.teammates:
            raise invalid("The owner specified is not a member of the workspace")
        return fields

    def _create(self, call: Call) -> Done:
        sent = decode_object(call.body)
        if not any(sent.get(field) for field in ("email", "external_id", "role")):
            raise Refusal(400, "parameter_missing", "email, external_id or role is needed")
        fields = self._fields(sent)
        attributes = self.attributes.check(sent.get("custom_attributes"))
        if fields.get("role") == "lead":
            fields["external_id"] = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        else:
            self._refuse_match(fields)
        contact = self.add(call.at_s, custom_attributes=attributes, **fields)
        return _done(render_contact(contact), "created", contact.id)

    def _refuse_match(self, fields: Json) -> None:
        """Refuse a user that is there already, be it archived or deleted (recordings)."""
        external_id, email = fields.get("external_id"), fields.get("email")
        matches = self.contacts.users_with_external_id(external_id) if external_id else []
        if email and (not external_id or self.rules.strict_email):
            matches += self.contacts.users_with_email(email)
        matches = [match for match in matches if match.state != "merged"]
        if matches:
            raise conflict(min(matches, key=lambda match: match.state != "live"))

    def add(self, at_s: float, **fields: Any) -> Contact:
        """Store a new contact; ``id`` and both times may be given."""
        times = {"created_at": int(at_s), "updated_at": int(at_s)}
        contact_id = f"{int(at_s):08x}{self._rng.getrandbits(64):016x}"
        made = {"id": contact_id, "workspace_id": self.rules.workspace_id, **times, **fields}
        return self.contacts.put(Contact(**made), at_s)

    def _update(self, call: Call) -> Done:
        contact = self.contacts.get(call.key)
        sent = decode_object(call.body)
        fields = self._fields(sent)
        attributes = self.attributes.check(sent.get("custom_attributes"))
        role = fields.get("role", contact.role)
        if role == "lead" != contact.role:
            text = "Contact with user role can't be converted to a lead"
            raise Refusal(400, "client_error", text)
        if role == "lead":
            fields.pop("external_id", None)
        self._refuse_taken(contact.id, fields.get("external_id"))
        if attributes:
            fields["custom_attributes"] = {**contact.custom_attributes, **attributes}
        changed = self.change(contact, call.at_s, **fields)
        return _done(render_contact(changed), "updated", contact.id)

    def _refuse_taken(self, contact_id: str, external_id: str | None) -> None:
        """Refuse the external id of another live user; an archived one's is free (recordings)."""
        for other in self.contacts.users_with_external_id(external_id) if external_id else ():
            if other.state == "live" and other.id != contact_id:
                raise conflict(other)

    def change(self, contact: Contact, at_s: float, **fields: Any) -> Contact:
        """Store a contact with other fields, and return it."""
        changed = msgspec.structs.replace(contact, updated_at=int(at_s), **fields)
        return self.contacts.put(changed, at_s)

    def _get(self, call: Call) -> Done:
        return _done(render_contact(self.contacts.get(call.key)), "read", call.key)

    def _find(self, call: Call) -> Done:
        users = self.contacts.users_with_external_id(call.key)
        users = [user for user in users if user.state in ("live", "merged")]
        if not users:
            raise not_found()
        found = self.contacts.get(min(users, key=lambda user: user.state != "live").id)
        return _done(render_contact(found), "read", found.id)

    def _list(self, call: Call) -> Done:
        asked = dict(parse_qsl(call.query))
        per_page = asked.get("per_page", "50")
        found = list(self.contacts.indexed(call.at_s))
        size = int(per_page) if per_page.isdecimal() else None
        return _done(page_of(found, size, asked.get("starting_after", "0")), "read")

    def _search(self, call: Call) -> Done:
        asked = decode_object(call.body)
        matches = compile_filter(asked.get("query"))
        found = [contact for contact in self.contacts.indexed(call.at_s) if matches(contact)]
        _sort(found, asked.get("sort"))
        page = asked.get("pagination") or {}
        if not isinstance(page, dict):
            raise invalid("pagination is invalid")
        shown = page_of(found, page.get("per_page", 50), page.get("starting_after") or "0")
        return _done(shown, "read")

    def _kept(self, call: Call) -> Contact:
        """Return a contact that is live or archived."""
        contact = self.contacts.by_id.get(call.key)
        if contact is None or contact.state not in ("live", "archived"):
            raise not_found()
        return contact

    def _archive(self, call: Call) -> Done:
        contact = self.change(self._kept(call), call.at_s, state="archived")
        shown = {"id": contact.id, "object": "contact", "archived": True}
        return _done(shown, "archived", contact.id)

    def _delete(self, call: Call) -> Done:
        contact = self.change(self._kept(call), call.at_s, state="deleted")
        shown = {"id": contact.id, "object": "contact", "deleted": True}
        return _done(shown, "deleted", contact.id)

    def _unarchive(self, call: Call) -> Done:
        contact = self.contacts.by_id.get(call.key)
        if contact is None:
            raise not_found()
        if contact.state in _NOT_RESTORABLE:
            text = f"User has been {_NOT_RESTORABLE[contact.state]} and is not restorable."
            raise Refusal(400, "bad_request", text)
        self._refuse_taken(contact.id, contact.external_id)
        self.change(contact, call.at_s, state="live")
        shown = {"id": contact.id, "object": "contact", "archived": False}
        return _done(shown, "unarchived", contact.id)

    def _merge(self, call: Call) -> Done:
        sent = decode_object(call.body)
        lead, user = self.contacts.get(sent.get("from")), self.contacts.get(sent.get("into"))
        if lead.role != "lead" or user.role != "user":
            raise Refusal(400, "invalid_merge", "Only a lead can be merged into a user")
        if not sent.get("skip_duplicate_validation") and not _are_duplicates(lead, user):
            text = "Contacts can only be merged when they are duplicates (matching email or phone)."
            raise Refusal(400, "invalid_merge", text)
        self.merge(lead, user, call.at_s)
        return _done(render_contact(user), "merged", user.id)

    def merge(self, one: Contact, into: Contact, at_s: float) -> None:
        """Let one contact disappear in another."""
        self.change(one, at_s, state="merged", merged_into=into.id)

    # attributes and the token

    def _list_attributes(self, call: Call) -> Done:
        model = dict(parse_qsl(call.query)).get("model", "contact")
        return _done({"type": "list", "data": self.attributes.listed(model)}, "read")

    def _create_attribute(self, call: Call) -> Done:
        return _done(self.attributes.create(decode_object(call.body), call.at_s), "created")

    def _me(self, call: Call) -> Done:
        app = {
            "type": "app",
            "id_code": self.rules.workspace_id,
            "name": "Sandbox",
            "region": self.rules.region,
            "timezone": "UTC",
            "created_at": 0,
            "identity_verification": False,
        }
        admin = {"type": "admin", "id": "1", "name": "Sandbox", "email": "admin@example.com"}
        return _done({**admin, "email_verified": True, "has_inbox_seat": True, "app": app}, "read")
