"""The effect of each call of Intercom's API on the workspace, once the call was let in.

Intercom's answers, as texts and codes, are here and in the modules below. ``sandbox.workspace``
explains the grades of the facts.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, unquote

from amplitude_intercom.transports.intercom import Request
from amplitude_intercom.transports.sandbox.calls import Call, Done, done
from amplitude_intercom.transports.sandbox.contact_routes import ContactRoutes
from amplitude_intercom.transports.sandbox.event_routes import EventRoutes
from amplitude_intercom.transports.sandbox.refusals import decode_object, not_found
from amplitude_intercom.transports.sandbox.workspace import WorkspaceState


class Routes:
    """The calls of one workspace, by method and path."""

    def __init__(self, workspace: WorkspaceState) -> None:
        self._workspace = workspace
        events, contacts = EventRoutes(workspace), ContactRoutes(workspace)
        self._table: dict[tuple[str, str], Callable[[Call], Done]] = {
            ("POST", "/events"): events.send,
            ("GET", "/events"): events.list_events,
            ("POST", "/contacts"): contacts.create,
            ("GET", "/contacts"): contacts.list_all,
            ("POST", "/contacts/search"): contacts.search,
            ("POST", "/contacts/merge"): contacts.merge,
            ("GET", "/contacts/find_by_external_id/{}"): contacts.find,
            ("GET", "/contacts/{}"): contacts.get,
            ("PUT", "/contacts/{}"): contacts.update,
            ("DELETE", "/contacts/{}"): contacts.delete,
            ("POST", "/contacts/{}/archive"): contacts.archive,
            ("POST", "/contacts/{}/unarchive"): contacts.unarchive,
            ("GET", "/data_attributes"): self._list_attributes,
            ("POST", "/data_attributes"): self._create_attribute,
            ("GET", "/me"): self._me,
        }

    def run(self, at_s: float, request: Request) -> Done:
        """Carry out a call.

        Raises:
            Refusal: a rule turns it down; 404 also for a method that its path does not have.
        """
        method = request.method
        path, _, query = request.path.partition("?")
        key = ""
        route = self._table.get((method, path))  # first, so that ``/contacts/search`` is no id
        if route is None:
            path, key = _route_of(path)
            route = self._table.get((method, path))
        if route is None:
            raise not_found("Resource Not Found")
        return route(Call(at_s, request.body or b"", query, key))

    def _list_attributes(self, call: Call) -> Done:
        model = dict(parse_qsl(call.query)).get("model", "contact")
        listed = self._workspace.attributes.listed(model)
        return done({"type": "list", "data": listed}, "read")

    def _create_attribute(self, call: Call) -> Done:
        sent = decode_object(call.body)
        return done(self._workspace.attributes.create(sent, call.at_s), "created")

    def _me(self, call: Call) -> Done:
        app = {
            "type": "app",
            "id_code": self._workspace.rules.workspace_id,
            "name": "Sandbox",
            "region": self._workspace.rules.region,
            "timezone": "UTC",
            "created_at": 0,
            "identity_verification": False,
        }
        admin = {"type": "admin", "id": "1", "name": "Sandbox", "email": "admin@example.com"}
        return done({**admin, "email_verified": True, "has_inbox_seat": True, "app": app}, "read")


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
