"""What is known of contacts: plain values, as the directory keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


class ContactKey(NamedTuple):
    """What a contact is known by: its workspace, and the field and value that find it."""

    workspace: int
    field: str
    value: str


class Held(NamedTuple):
    """A user property as last worked out: null where it has no value; and the time (Unix ms) of the
    event that it is from, 0 where it was read from the contact."""

    value: Any
    at_ms: int = 0


class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a contact.

    ``contact_id``: empty where none is known.
    ``is_lost``: Intercom has said that it is not there; where it turns up again, the rest holds.
    ``owner``: of a user that was merged into another, the identifier of that one, under which all
    that is known of their contact is kept.
    ``fields``: flat, as they were written, or read, or refused last.
    ``unsure``: fields that were about to be written since; a write has no answer yet.
    ``properties``: by taker (as text); a name that is missing may have a value on the contact.
    ``unread``: takers whose properties are of another contact, or of before a merge; the contact is
    read before they are counted on.
    ``selections``: by taker, the number of the selection that its properties are of.
    """

    contact_id: str = ""
    is_lost: bool = False
    owner: str = ""
    fields: dict[str, Any] = {}
    unsure: list[str] = []
    properties: dict[str, dict[str, Held]] = {}
    selections: dict[str, int] = {}
    unread: list[str] = []


def own_after(own: Known, theirs: Known) -> Known:
    """Return what is known of a user that had a contact together with another one, and has not any
    more: it has what the two had, and no contact."""
    return msgspec.structs.replace(
        own,
        owner="",
        is_lost=bool(own.contact_id),
        fields={},
        unsure=[],
        properties=theirs.properties or own.properties,
        selections=theirs.selections or own.selections,
        unread=[],
    )
