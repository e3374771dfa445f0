"""The calls about contacts: creating, reading, searching, updating, archiving, merging."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

from amplitude_intercom.transports.sandbox.calls import Call, Done, done
from amplitude_intercom.transports.sandbox.checks import standard_fields
from amplitude_intercom.transports.sandbox.contacts import (
    Contact,
    conflict,
    page_of,
    render_contact,
)
from amplitude_intercom.transports.sandbox.refusals import (
    Json,
    Refusal,
    decode_object,
    invalid,
    not_found,
)
from amplitude_intercom.transports.sandbox.searching import compile_filter, sort_contacts
from amplitude_intercom.transports.sandbox.workspace import WorkspaceState

_NOT_RESTORABLE: Final = {"deleted": "marked for permanent deletion", "merged": "merged"}


class ContactRoutes:
    """The calls about contacts, for one workspace."""

    def __init__(self, workspace: WorkspaceState) -> None:
        self._workspace = workspace
        self._contacts = workspace.contacts
        self._rules = workspace.rules
        self._attributes = workspace.attributes

    def create(self, call: Call) -> Done:
        """``POST /contacts``."""
        sent = decode_object(call.body)
        if not any(sent.get(field) for field in ("email", "external_id", "role")):
            raise Refusal(400, "parameter_missing", "email, external_id or role is needed")
        fields = self._fields(sent)
        attributes = self._attributes.check(sent.get("custom_attributes"))
        # A lead's external id is always Intercom's own, whatever was sent.
        if fields.get("role") == "lead":
            fields["external_id"] = str(
                uuid.UUID(int=self._workspace.rng.getrandbits(128), version=4)
            )
        else:
            self._refuse_match(fields)
        contact = self._workspace.add_contact(call.at_s, custom_attributes=attributes, **fields)
        return done(self._rendered(contact), "created", contact.id)

    def _refuse_match(self, fields: Json) -> None:
        """Refuse a user that is there already, be it archived or deleted (recordings)."""
        external_id, email = fields.get("external_id"), fields.get("email")
        matches = self._contacts.users_with_external_id(external_id) if external_id else []
        if email and (not external_id or self._rules.strict_email):
            matches += self._contacts.users_with_email(email)
        matches = [match for match in matches if match.state != "merged"]
        if matches:
            # Of several matches the live one is named: its id is of use to the client.
            raise conflict(min(matches, key=lambda match: match.state != "live"))

    def get(self, call: Call) -> Done:
        """``GET /contacts/{id}``."""
        return done(self._rendered(self._contacts.get(call.key)), "read", call.key)

    def find(self, call: Call) -> Done:
        """``GET /contacts/find_by_external_id/{id}``."""
        users = self._contacts.users_with_external_id(call.key)
        users = [user for user in users if user.state in ("live", "merged")]
        if not users:
            raise not_found()
        found = self._contacts.get(min(users, key=lambda user: user.state != "live").id)
        return done(self._rendered(found), "read", found.id)

    def list_all(self, call: Call) -> Done:
        """``GET /contacts``."""
        asked = dict(parse_qsl(call.query))
        per_page = asked.get("per_page", "50")
        found = list(self._contacts.indexed(call.at_s))
        size = int(per_page) if per_page.isdecimal() else None
        return done(self._page(found, size, asked.get("starting_after", "0")), "read")

    def search(self, call: Call) -> Done:
        """``POST /contacts/search``."""
        asked = decode_object(call.body)
        matches = compile_filter(asked.get("query"))
        found = [contact for contact in self._contacts.indexed(call.at_s) if matches(contact)]
        sort_contacts(found, asked.get("sort"))
        page = asked.get("pagination") or {}
        if not isinstance(page, dict):
            raise invalid("pagination is invalid")
        shown = self._page(found, page.get("per_page", 50), page.get("starting_after") or "0")
        return done(shown, "read")

    def update(self, call: Call) -> Done:
        """``PUT /contacts/{id}``."""
        contact = self._contacts.get(call.key)
        sent = decode_object(call.body)
        fields = self._fields(sent)
        attributes = self._attributes.check(sent.get("custom_attributes"))
        role = fields.get("role", contact.role)
        if role == "lead" != contact.role:
            text = "Contact with user role can't be converted to a lead"
            raise Refusal(400, "client_error", text)
        if role == "lead":
            fields.pop("external_id", None)
        self._refuse_taken(contact.id, fields.get("external_id"))
        # A write is partial: attributes that it leaves out keep their values.
        if attributes:
            fields["custom_attributes"] = {**contact.custom_attributes, **attributes}
        changed = self._workspace.change_contact(contact, call.at_s, **fields)
        return done(self._rendered(changed), "updated", contact.id)

    def _refuse_taken(self, contact_id: str, external_id: str | None) -> None:
        """Refuse the external id of another live user; an archived one's is free (recordings)."""
        for other in self._contacts.users_with_external_id(external_id) if external_id else ():
            if other.state == "live" and other.id != contact_id:
                raise conflict(other)

    def archive(self, call: Call) -> Done:
        """``POST /contacts/{id}/archive``."""
        contact = self._workspace.change_contact(self._kept(call), call.at_s, state="archived")
        shown = {"id": contact.id, "object": "contact", "archived": True}
        return done(shown, "archived", contact.id)

    def delete(self, call: Call) -> Done:
        """``DELETE /contacts/{id}``."""
        contact = self._workspace.change_contact(self._kept(call), call.at_s, state="deleted")
        shown = {"id": contact.id, "object": "contact", "deleted": True}
        return done(shown, "deleted", contact.id)

    def unarchive(self, call: Call) -> Done:
        """``POST /contacts/{id}/unarchive``."""
        contact = self._contacts.by_id.get(call.key)
        if contact is None:
            raise not_found()
        if contact.state in _NOT_RESTORABLE:
            text = f"User has been {_NOT_RESTORABLE[contact.state]} and is not restorable."
            raise Refusal(400, "bad_request", text)
        # Meanwhile another user may have got the external id, which was free.
        self._refuse_taken(contact.id, contact.external_id)
        self._workspace.change_contact(contact, call.at_s, state="live")
        shown = {"id": contact.id, "object": "contact", "archived": False}
        return done(shown, "unarchived", contact.id)

    def _rendered(self, contact: Contact) -> Json:
        return render_contact(contact, self._rules.workspace_id)

    def _page(self, found: Sequence[Contact], per_page: object, cursor: object) -> Json:
        return page_of(found, per_page, cursor, self._rules.workspace_id)

    def _kept(self, call: Call) -> Contact:
        """Return a contact that is live or archived."""
        contact = self._contacts.by_id.get(call.key)
        if contact is None or contact.state not in ("live", "archived"):
            raise not_found()
        return contact

    def merge(self, call: Call) -> Done:
        """``POST /contacts/merge``."""
        sent = decode_object(call.body)
        lead, user = (
            self._contacts.get(sent.get("from")),
            self._contacts.get(sent.get("into")),
        )
        if lead.role != "lead" or user.role != "user":
            raise Refusal(400, "invalid_merge", "Only a lead can be merged into a user")
        if not sent.get("skip_duplicate_validation") and not _are_duplicates(lead, user):
            text = "Contacts can only be merged when they are duplicates (matching email or phone)."
            raise Refusal(400, "invalid_merge", text)
        self._workspace.merge_contacts(lead, user, call.at_s)
        return done(self._rendered(user), "merged", user.id)

    def _fields(self, sent: Json) -> Json:
        fields = standard_fields(sent)
        owner = fields.get("owner_id")
        if owner is not None and owner not in self._rules.teammates:
            raise invalid("The owner specified is not a member of the workspace")
        return fields


def _are_duplicates(one: Contact, other: Contact) -> bool:
    """Return whether a merge needs no permission: same e-mail or phone (API description)."""
    same_email = bool(one.email) and one.email.lower() == other.email.lower()
    return same_email or (one.phone is not None and one.phone == other.phone)
