"""The knowledge of a contact, as the directory stores it: plain values."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


class ContactKey(NamedTuple):
    """The key of a contact: its workspace, and the field and value that find it."""

    workspace: int
    field: str
    value: str


# A tuple is an array in JSON, which is shorter than an object.
class Held(NamedTuple):
    """A user property's last value, null if it has none.

    ``at_ms`` is the time (Unix ms) of the event that set it, 0 if it was read from the contact.
    """

    value: Any
    at_ms: int = 0


# Without defaults in its JSON: a million of these may be on disk.
class Known(msgspec.Struct, frozen=True, omit_defaults=True):
    """The knowledge of a contact.

    ``contact_id``: empty if it is not known.
    ``is_lost``: Intercom said that the contact is missing; if it is found again, the rest holds.
    ``owner``: for a user that was merged into another, the other's identifier, which has the
    knowledge of their contact.
    ``fields``: flat, as last written, read or refused.
    ``unsure``: fields with a later write that has no answer yet.
    ``properties``: by taker (as text); the contact may have a value for a missing name.
    ``unread``: takers with properties of another contact, or of a time before a merge; the contact
    is read before they are used.
    ``selections``: by taker, the number of the selection of its properties.
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
    """Return the knowledge of a user that shared a contact with another user, and lost it.

    It keeps the shared properties, and has no contact.
    """
    return msgspec.structs.replace(
        own,
        owner="",
        # The contact with this id is another user's now, or missing: nothing is written to it.
        is_lost=bool(own.contact_id),
        # The fields are those of the contact that it has lost.
        fields={},
        unsure=[],
        # Since the merge the properties of both were kept with the other user.
        properties=theirs.properties or own.properties,
        selections=theirs.selections or own.selections,
        unread=[],
    )


class Stranger(NamedTuple):
    """The attempts that have found a user unknown to Intercom.

    ``refusals``: the number of them. ``attempt_at_ms``: when the next is due. ``tried_at_ms``: when
    the user was tried last, for any reason.
    """

    refusals: int
    attempt_at_ms: int
    tried_at_ms: int
