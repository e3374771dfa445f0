"""The next step of a contact update, by the answer to the last one. Pure.

Rules
=====
1. ``TABLE`` has the consequence of each answer, by the step that it answers.
2. Every answer with a contact is checked for its identifier. A contact with another identifier is
   not written again, and not taken for the user's even if a search still finds it.
3. A contact into which the user's was merged is read first. If it is another user's, the update
   goes on as that user's (``Action.JOIN``).
4. An existing contact is read before it is written, unless only the user's own identifier can be
   the reason for the refusal of a create.
5. A value that a refusal names exactly is left out, and the rest is written. Such a value is a
   field, or an e-mail or id that another contact has.
6. No contact is followed, and none created, twice for the same reason. So answers that lead in a
   circle end the update.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal

import msgspec

from amplitude_intercom.engine.envelope import Adjustment, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason, Failure
from amplitude_intercom.engine.rules.bodies import ATTRIBUTE_PREFIX
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

OWNER: Final = "owner_id"
CONTESTED: Final = ("email", "external_id")
"""Fields with values that are unique among contacts."""


class Action(enum.Enum):
    """A step of an update."""

    FIND = enum.auto()
    """Look for the contact by its external id."""
    SEARCH = enum.auto()
    """Look for contacts with its e-mail."""
    CREATE = enum.auto()
    CREATE_EMPTY = enum.auto()
    """Create it with the identifiers alone: its values are written afterwards."""
    CREATE_BARE = enum.auto()
    """Create it with its identifier only."""
    LOOK = enum.auto()
    PUT = enum.auto()
    UNARCHIVE = enum.auto()
    JOIN = enum.auto()
    """No call: the user was merged into another one, and shares that one's contact."""
    DONE = enum.auto()


class Said(enum.Enum):
    """The meaning of an answer."""

    OURS = enum.auto()
    NAMELESS = enum.auto()
    """The contact has no identifier of this kind."""
    ANOTHERS = enum.auto()
    TAKEN = enum.auto()
    """A contact with these details exists, and the answer names it."""
    TAKEN_ARCHIVED = enum.auto()
    TAKEN_BY_SOME = enum.auto()
    """Contacts with these details exist, and the answer names none."""
    GONE = enum.auto()
    MERGED = enum.auto()
    REFUSED_FIELD = enum.auto()
    REFUSED = enum.auto()


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one update.

    ``owner``: the contact's identifier, of the user into which this one was merged.
    ``is_merge_target``: the user's contact was merged into this one, its owner is not known yet.
    ``adopts``: a contact without identifier becomes the user's. ``without``: fields left out.
    ``followed``: contacts to which an answer led. ``disowned``: contacts that proved to be another
    user's. ``created``: repeated creates, by their step. ``is_looked_at``: the contact was read.
    ``is_another``: it is not the contact that was known, so the knowledge of its fields is void.
    """

    identity: Identity
    archived: Literal["unarchive", "dead_letter"]
    contact_id: str = ""
    owner: str = ""
    is_merge_target: bool = False
    adopts: bool = False
    without: frozenset[str] = frozenset()
    followed: frozenset[str] = frozenset()
    disowned: frozenset[str] = frozenset()
    created: frozenset[Action] = frozenset()
    is_looked_at: bool = False
    is_another: bool = False
    was_there: bool | None = None
    """Whether a first contact found the contact already there; None until that is known."""
    left_out: tuple[Adjustment, ...] = ()


NextStep = Action | Failure
Resolved = tuple[Resolution, NextStep]


def resolve(
    resolution: Resolution, did: Action, answer: Answer, sent: Collection[str] = ()
) -> Resolved:
    """Return the state of an update after an answer, and its next step. ``sent``: its fields."""
    said = say(resolution, did, answer, sent)
    follow = TABLE.get((did, said), _refused)
    return follow(resolution, answer, sent)


# --- meanings of answers ------------------------------------------------------------------


def say(resolution: Resolution, did: Action, answer: Answer, sent: Collection[str]) -> Said:
    """Return the meaning of an answer to a step."""
    if 200 <= answer.status < 300:
        return _found_of(did, resolution, answer)
    if answer.status == 404:
        return Said.GONE
    if answer.status == 410:
        return Said.MERGED
    if answer.status == 409 or intercom.says_ambiguous(answer):
        # The id of the contact stands in the message's text alone; some 409s have none.
        if intercom.named_contact(intercom.parse_error(answer).message) is None:
            return Said.TAKEN_BY_SOME
        return Said.TAKEN_ARCHIVED if intercom.says_archived(answer) else Said.TAKEN
    return Said.REFUSED_FIELD if refused_field(answer, sent) else Said.REFUSED


def _found_of(did: Action, resolution: Resolution, answer: Answer) -> Said:
    # It is the user's own: with the identifier alone a create was refused for it.
    if did is Action.UNARCHIVE:
        return Said.OURS
    if did is Action.SEARCH and len(answer.listed) != 1:
        return Said.TAKEN_BY_SOME if answer.listed else Said.GONE
    if did is Action.SEARCH and answer.contact.get("id") in resolution.disowned:
        return Said.GONE  # the index is minutes behind
    return _whose(resolution, answer)


def _whose(resolution: Resolution, answer: Answer) -> Said:
    theirs = identifier_of(resolution, answer)
    ours = _plain(resolution.identity.field, resolution.identity.value)
    # Where the user was merged into another one, the contact has that one's identifier.
    if theirs == ours or (theirs and theirs == _plain(resolution.identity.field, resolution.owner)):
        return Said.OURS
    return Said.ANOTHERS if theirs else Said.NAMELESS


def identifier_of(resolution: Resolution, answer: Answer) -> str:
    """Return the identifier of an answer's contact; empty without one."""
    text = str(answer.contact.get(resolution.identity.field) or "")
    return _plain(resolution.identity.field, text)


def _plain(field: str, text: str) -> str:
    """Return an identifier for comparison: Intercom may have stripped it."""
    return text.strip().lower() if field == "email" else text.strip()


def refused_field(answer: Answer, sent: Collection[str]) -> str:
    """Return the sent field that a 400 or 422 names; empty unless it names exactly one."""
    if answer.status not in (400, 422):
        return ""
    if intercom.is_nobodys_owner(answer):
        return OWNER if OWNER in sent else ""
    error = intercom.parse_error(answer)
    found = [name for name in sent if _names(error.message, error.field, name)]
    # Leaving out the wrong field would lose a value and be refused again.
    return found[0] if len(found) == 1 else ""


def _names(message: str, named: str, field: str) -> bool:
    """Return whether a message is about a field.

    It is if it quotes the name, calls it an attribute, or begins with it.
    """
    name = field.removeprefix(ATTRIBUTE_PREFIX)
    if named in (field, name):
        return True
    escaped = re.escape(name)
    quoted = rf"""['"\u2018\u201c`]{escaped}['"\u2019\u201d`]"""
    if re.search(rf"{quoted}|attribute {escaped}(?![\w.-])", message):
        return True
    return name == field and bool(re.match(rf"{escaped}(?![\w.-])", message, re.IGNORECASE))


# --- next steps ---------------------------------------------------------------------------


def _refused(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    return resolution, failure_of(DeadReason.REFUSED, answer)


def _done(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    contact_id = str(answer.contact.get("id") or resolution.contact_id)
    return _replace(resolution, contact_id=contact_id), Action.DONE


def _created(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    resolution = _replace(resolution, contact_id=str(answer.contact.get("id", "")))
    return _noting(resolution, was_there=False), Action.DONE


def _created_empty(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    resolution = _replace(
        resolution, contact_id=str(answer.contact.get("id", "")), is_looked_at=True
    )
    return _noting(resolution, was_there=False), Action.PUT


def _found(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    contact_id = str(answer.contact.get("id", ""))
    resolution = _noting(resolution, was_there=True)
    return _replace(
        resolution, contact_id=contact_id, is_looked_at=True, is_another=True
    ), Action.PUT


def _not_found(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    return _noting(resolution, was_there=False), Action.CREATE


def _found_in_index(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Go on with the contact; its fields in the index may be minutes old."""
    resolution, step = _found(resolution, answer, sent)
    return _replace(resolution, is_looked_at=False), step


def _found_several(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    text = "several contacts have this e-mail: which of them it is, nobody can tell"
    return resolution, Failure(DeadReason.CONTACT_AMBIGUOUS, message=text)


def _looked(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    return _replace(resolution, is_looked_at=True, is_merge_target=False), Action.PUT


def _looked_nameless(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Adopt a contact without identifier, if another field or a merge led to it."""
    # A contact that was known by the identifier and has lost it is nobody's: writing on would fill
    # a contact that no user has.
    if not resolution.is_another:
        return _disowned(resolution, answer, sent)
    return _replace(resolution, is_looked_at=True, is_merge_target=False, adopts=True), Action.PUT


def _is_anothers(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Leave out the contested details, because the contact is another user's."""
    # Both users are one in Intercom from now on, so their updates must not be written by two turns
    # at a time.
    if resolution.is_merge_target:
        theirs = identifier_of(resolution, answer)
        return _replace(resolution, is_merge_target=False, owner=theirs), Action.JOIN
    # The create was refused for a detail, and not for the identifier, which is free.
    contested = [name for name in CONTESTED if name in sent and name != resolution.identity.field]
    if not resolution.is_another or not contested:
        return _disowned(resolution, answer, sent)
    resolution = _replace(resolution, contact_id="", is_another=False)
    return _leaving_out(resolution, contested), Action.CREATE


def _taken(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Go on with the existing contact that a create met."""
    resolution, step = _follow(resolution, _named(answer), answer)
    if isinstance(step, Failure):
        return resolution, step
    resolution = _noting(resolution, was_there=True)
    other = [name for name in CONTESTED if name in sent and name != resolution.identity.field]
    # With an e-mail sent too, the 409 may be about that, and the contact another user's. Without
    # one it can only be the user's own: a look would be a call wasted.
    return resolution, Action.LOOK if other else Action.PUT


def _taken_by_archived(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Create with the identifier alone. If that is taken too, the contact is the user's own."""
    # The archived contact may be another user's that has the same e-mail. Unarchiving it first
    # would bring back a contact that somebody has removed.
    if not [name for name in CONTESTED if name in sent and name != resolution.identity.field]:
        return _is_archived(resolution, answer, sent)
    return _creating(resolution, Action.CREATE_BARE, answer)


def _is_archived(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Unarchive the user's own contact, which has the identifier, by setting."""
    resolution = _noting(resolution, was_there=True)
    if resolution.archived == "dead_letter":
        return resolution, failure_of(DeadReason.CONTACT_ARCHIVED, answer)
    resolution, step = _follow(resolution, _named(answer), answer)
    return (resolution, step) if isinstance(step, Failure) else (resolution, Action.UNARCHIVE)


def _unarchived(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    return resolution, Action.PUT


def _cannot_be_had(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    return resolution, failure_of(DeadReason.CONTACT_GONE, answer)


def _taken_by_some(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    contested = [name for name in CONTESTED if name in sent and name != resolution.identity.field]
    if contested:
        return _leaving_out(
            resolution, contested
        ), Action.PUT if resolution.contact_id else Action.CREATE
    # Of several contacts with one e-mail none can be chosen: a guess would write another person's.
    if intercom.says_ambiguous(answer):
        return resolution, failure_of(DeadReason.CONTACT_AMBIGUOUS, answer)
    # Another program may have created it between two calls: so once more, but once only.
    if Action.CREATE in resolution.created:
        return resolution, failure_of(DeadReason.CONTACT_CONFLICT, answer)
    return _creating(resolution, Action.CREATE, answer)


def _put_is_taken(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Leave out the e-mail or id that another contact has."""
    contested = [name for name in CONTESTED if name in sent]
    # The identifier cannot be left out: without it the contact would not be the user's.
    if not contested or (resolution.adopts and resolution.identity.field in contested):
        return resolution, failure_of(DeadReason.CONTACT_CONFLICT, answer)
    return _leaving_out(resolution, contested), Action.PUT


def _gone(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Create another contact, because the known one is missing."""
    resolution = _replace(
        resolution,
        # All that was known of the contact goes with it; what was left out of the update
        # (`without`) stays, for its values are the same.
        contact_id="",
        owner="",
        is_merge_target=False,
        is_looked_at=False,
        is_another=False,
        adopts=False,
    )
    return _creating(resolution, Action.CREATE, answer)


def _disowned(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    """Create another contact, because the known one belongs to another user now."""
    resolution = _replace(
        resolution, disowned=resolution.disowned | {str(answer.contact.get("id", ""))}
    )
    return _gone(resolution, answer, sent)


def _merged(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    # The new contact is in the `Link` header of a 410 only.
    target = intercom.merged_into(answer)
    if target is None:
        return resolution, failure_of(DeadReason.CONTACT_GONE, answer)
    resolution, step = _follow(
        _replace(resolution, is_merge_target=True, owner="", adopts=False), target, answer
    )
    resolution = _noting(resolution, was_there=True)
    return (resolution, step) if isinstance(step, Failure) else (resolution, Action.LOOK)


def _without_field(resolution: Resolution, answer: Answer, sent: Collection[str]) -> Resolved:
    field = refused_field(answer, sent)
    what = (
        "left out, no teammate has this id" if field == OWNER else "left out, Intercom refuses it"
    )
    reason = AdjustmentReason.TYPE_MISMATCH
    if intercom.unknown_attribute(answer) == field.removeprefix(ATTRIBUTE_PREFIX):
        reason, what = AdjustmentReason.UNKNOWN_ATTRIBUTE, "left out"
    adjustment = Adjustment(reason, field, what)
    resolution = _replace(
        resolution,
        without=resolution.without | {field},
        left_out=(*resolution.left_out, adjustment),
    )
    return resolution, Action.PUT if resolution.contact_id else Action.CREATE


# --- changes of the state -----------------------------------------------------------------


def _replace(resolution: Resolution, **changes: object) -> Resolution:
    return msgspec.structs.replace(resolution, **changes)


def _noting(resolution: Resolution, *, was_there: bool) -> Resolution:
    """Note whether a first contact existed. The first note counts."""
    return (
        resolution
        if resolution.was_there is not None
        else _replace(resolution, was_there=was_there)
    )


def _leaving_out(resolution: Resolution, fields: Collection[str]) -> Resolution:
    adjustments = [
        Adjustment(AdjustmentReason.TAKEN, field, "left out, another contact has it")
        for field in fields
    ]
    without = resolution.without | set(fields)
    return _replace(resolution, without=without, left_out=(*resolution.left_out, *adjustments))


def _creating(resolution: Resolution, how: Action, answer: Answer) -> Resolved:
    """Create the contact in another form, or in place of a missing one: once each."""
    # The same answer twice means that Intercom will give it for ever.
    if how in resolution.created:
        return resolution, failure_of(DeadReason.CONTACT_GONE, answer)
    return _replace(resolution, created=resolution.created | {how}), how


def _follow(resolution: Resolution, contact_id: str, answer: Answer) -> Resolved:
    """Go on with another contact, once for each."""
    # Two contacts whose 409s name each other would be a circle.
    if contact_id in resolution.followed:
        return resolution, failure_of(DeadReason.CONTACT_GONE, answer)
    followed = resolution.followed | {contact_id}
    resolution = _replace(resolution, contact_id=contact_id, is_looked_at=False, is_another=True)
    return _replace(resolution, followed=followed), Action.PUT


def _named(answer: Answer) -> str:
    return intercom.named_contact(intercom.parse_error(answer).message) or ""


def failure_of(reason: DeadReason, answer: Answer) -> Failure:
    """Return an answer as the failure that ends an update."""
    said = intercom.parse_error(answer)
    return Failure(reason, answer.status, said.code, said.message, said.request_id)


TABLE: Final[
    Mapping[tuple[Action, Said], Callable[[Resolution, Answer, Collection[str]], Resolved]]
] = {
    (Action.FIND, Said.OURS): _found,
    (Action.FIND, Said.GONE): _not_found,
    (Action.FIND, Said.NAMELESS): _not_found,
    (Action.FIND, Said.ANOTHERS): _not_found,
    (Action.FIND, Said.MERGED): _merged,
    (Action.SEARCH, Said.OURS): _found_in_index,
    (Action.SEARCH, Said.GONE): _not_found,
    (Action.SEARCH, Said.NAMELESS): _not_found,
    (Action.SEARCH, Said.ANOTHERS): _not_found,
    (Action.SEARCH, Said.TAKEN_BY_SOME): _found_several,
    (Action.CREATE, Said.OURS): _created,
    (Action.CREATE, Said.NAMELESS): _created,
    (Action.CREATE, Said.ANOTHERS): _created,
    (Action.CREATE, Said.TAKEN): _taken,
    (Action.CREATE, Said.TAKEN_ARCHIVED): _taken_by_archived,
    (Action.CREATE, Said.TAKEN_BY_SOME): _taken_by_some,
    (Action.CREATE, Said.REFUSED_FIELD): _without_field,
    (Action.CREATE_EMPTY, Said.OURS): _created_empty,
    (Action.CREATE_EMPTY, Said.NAMELESS): _created_empty,
    (Action.CREATE_EMPTY, Said.ANOTHERS): _created_empty,
    (Action.CREATE_EMPTY, Said.TAKEN): _taken,
    (Action.CREATE_EMPTY, Said.TAKEN_ARCHIVED): _taken_by_archived,
    (Action.CREATE_EMPTY, Said.TAKEN_BY_SOME): _taken_by_some,
    (Action.CREATE_EMPTY, Said.REFUSED_FIELD): _without_field,
    (Action.CREATE_BARE, Said.OURS): _created_empty,
    (Action.CREATE_BARE, Said.NAMELESS): _created_empty,
    (Action.CREATE_BARE, Said.ANOTHERS): _created_empty,
    (Action.CREATE_BARE, Said.TAKEN): _taken,
    (Action.CREATE_BARE, Said.TAKEN_ARCHIVED): _is_archived,
    (Action.CREATE_BARE, Said.TAKEN_BY_SOME): _taken_by_some,
    (Action.LOOK, Said.OURS): _looked,
    (Action.LOOK, Said.NAMELESS): _looked_nameless,
    (Action.LOOK, Said.ANOTHERS): _is_anothers,
    (Action.LOOK, Said.GONE): _gone,
    (Action.LOOK, Said.MERGED): _merged,
    (Action.PUT, Said.OURS): _done,
    (Action.PUT, Said.NAMELESS): _disowned,
    (Action.PUT, Said.ANOTHERS): _disowned,
    (Action.PUT, Said.TAKEN): _put_is_taken,
    (Action.PUT, Said.TAKEN_ARCHIVED): _put_is_taken,
    (Action.PUT, Said.TAKEN_BY_SOME): _put_is_taken,
    (Action.PUT, Said.GONE): _gone,
    (Action.PUT, Said.MERGED): _merged,
    (Action.PUT, Said.REFUSED_FIELD): _without_field,
    (Action.UNARCHIVE, Said.OURS): _unarchived,
    (Action.UNARCHIVE, Said.GONE): _cannot_be_had,
    (Action.UNARCHIVE, Said.MERGED): _cannot_be_had,
    (Action.UNARCHIVE, Said.REFUSED): _cannot_be_had,
    (Action.UNARCHIVE, Said.REFUSED_FIELD): _cannot_be_had,
}
"""The next steps; any other answer is final (``_refused``)."""
