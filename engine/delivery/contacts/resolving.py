"""The next step of a contact update, by the answer to the last one. Pure.

Rules
=====
1. ``TABLE`` has the consequence of each answer, by the step that it answers.
2. Every answer with a contact is checked for its identifier. A contact with another identifier is
   not written again, and not taken for the user's even if a search still finds it.
3. A contact into which the user's was merged is read first. If it is another user's, the update
   goes on as that user's (``Do.JOIN``).
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


class Do(enum.Enum):
    """A step of an update."""

    FIND = enum.auto()
    """Look for the contact by its external id."""
    SEARCH = enum.auto()
    """Look for contacts with its e-mail."""
    CREATE = enum.auto()
    CREATE_EMPTY = enum.auto()
    """Create it with unique fields only. The other fields are written to it afterwards."""
    CREATE_BARE = enum.auto()
    """Create it with its identifier only."""
    LOOK = enum.auto()
    PUT = enum.auto()
    UNARCHIVE = enum.auto()
    JOIN = enum.auto()
    """No call: after a merge into another user, the knowledge of that user's contact holds."""
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


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one update.

    ``owner``: the contact's identifier, of the user into which this one was merged.
    ``is_heir``: the user's contact was merged into this one, and its owner is not known yet.
    ``adopts``: a contact without identifier becomes the user's. ``without``: fields left out.
    ``followed``: contacts to which an answer led. ``disowned``: contacts that proved to be another
    user's. ``created``: repeated creates, by their step. ``is_looked_at``: the contact was read.
    ``is_another``: it is not the contact that was known, so the knowledge of its fields is void.
    """

    identity: Identity
    archived: Literal["unarchive", "dead_letter"]
    contact_id: str = ""
    owner: str = ""
    is_heir: bool = False
    adopts: bool = False
    without: frozenset[str] = frozenset()
    followed: frozenset[str] = frozenset()
    disowned: frozenset[str] = frozenset()
    created: frozenset[Do] = frozenset()
    is_looked_at: bool = False
    is_another: bool = False
    was_there: bool | None = None
    """Whether a first contact found the contact already there; None until that is known."""
    left_out: tuple[Adjustment, ...] = ()


Step = Do | Failure
Next = tuple[Way, Step]


def resolve(way: Way, did: Do, answer: Answer, sent: Collection[str] = ()) -> Next:
    """Return the state of an update after an answer, and its next step. ``sent``: its fields."""
    said = say(way, did, answer, sent)
    follow = TABLE.get((did, said), _refused)
    return follow(way, answer, sent)


# --- the meaning of an answer -------------------------------------------------------------


def say(way: Way, did: Do, answer: Answer, sent: Collection[str]) -> Said:
    """Return the meaning of an answer to a step."""
    if 200 <= answer.status < 300:
        return _found_of(did, way, answer)
    if answer.status == 404:
        return Said.GONE
    if answer.status == 410:
        return Said.MERGED
    if answer.status == 409 or intercom.says_ambiguous(answer):
        if intercom.named_contact(intercom.parse_error(answer).message) is None:
            return Said.TAKEN_BY_SOME
        return Said.TAKEN_ARCHIVED if intercom.says_archived(answer) else Said.TAKEN
    return Said.REFUSED_FIELD if refused_field(answer, sent) else Said.REFUSED


def _found_of(did: Do, way: Way, answer: Answer) -> Said:
    if did is Do.UNARCHIVE:
        return Said.OURS
    if did is Do.SEARCH and len(answer.listed) != 1:
        return Said.TAKEN_BY_SOME if answer.listed else Said.GONE
    if did is Do.SEARCH and answer.contact.get("id") in way.disowned:
        return Said.GONE  # the index of the search is minutes behind
    return _whose(way, answer)


def _whose(way: Way, answer: Answer) -> Said:
    theirs = identifier_of(way, answer)
    ours = _plain(way.identity.field, way.identity.value)
    if theirs == ours or (theirs and theirs == _plain(way.identity.field, way.owner)):
        return Said.OURS
    return Said.ANOTHERS if theirs else Said.NAMELESS


def identifier_of(way: Way, answer: Answer) -> str:
    """Return the identifier of an answer's contact; empty without one."""
    text = str(answer.contact.get(way.identity.field) or "")
    return _plain(way.identity.field, text)


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


# --- consequences -------------------------------------------------------------------------


def _refused(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    return way, failure_of(DeadReason.REFUSED, answer)


def _done(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    contact_id = str(answer.contact.get("id") or way.contact_id)
    return _replace(way, contact_id=contact_id), Do.DONE


def _created(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    way = _replace(way, contact_id=str(answer.contact.get("id", "")))
    return _noting(way, was_there=False), Do.DONE


def _created_empty(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    way = _replace(way, contact_id=str(answer.contact.get("id", "")), is_looked_at=True)
    return _noting(way, was_there=False), Do.PUT


def _found(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    contact_id = str(answer.contact.get("id", ""))
    way = _noting(way, was_there=True)
    return _replace(way, contact_id=contact_id, is_looked_at=True, is_another=True), Do.PUT


def _not_found(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    return _noting(way, was_there=False), Do.CREATE


def _found_in_index(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Go on with the contact; its fields in the index may be minutes old."""
    way, step = _found(way, answer, sent)
    return _replace(way, is_looked_at=False), step


def _found_several(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    text = "several contacts have this e-mail: which of them it is, nobody can tell"
    return way, Failure(DeadReason.CONTACT_AMBIGUOUS, message=text)


def _looked(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    return _replace(way, is_looked_at=True, is_heir=False), Do.PUT


def _looked_nameless(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Adopt a contact without identifier, if another field or a merge led to it."""
    if not way.is_another:
        return _disowned(way, answer, sent)
    return _replace(way, is_looked_at=True, is_heir=False, adopts=True), Do.PUT


def _is_anothers(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Leave out the contested details, because the contact is another user's."""
    if way.is_heir:
        theirs = identifier_of(way, answer)
        return _replace(way, is_heir=False, owner=theirs), Do.JOIN
    contested = [name for name in CONTESTED if name in sent and name != way.identity.field]
    if not way.is_another or not contested:
        return _disowned(way, answer, sent)
    way = _replace(way, contact_id="", is_another=False)
    return _leaving_out(way, contested), Do.CREATE


def _taken(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Go on with the existing contact that a create met."""
    way, step = _follow(way, _named(answer), answer)
    if isinstance(step, Failure):
        return way, step
    way = _noting(way, was_there=True)
    other = [name for name in CONTESTED if name in sent and name != way.identity.field]
    return way, Do.LOOK if other else Do.PUT


def _taken_by_archived(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Create with the identifier alone. If that is taken too, the contact is the user's own."""
    if not [name for name in CONTESTED if name in sent and name != way.identity.field]:
        return _is_archived(way, answer, sent)
    return _creating(way, Do.CREATE_BARE, answer)


def _is_archived(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Unarchive the user's own contact, which has the identifier, by setting."""
    way = _noting(way, was_there=True)
    if way.archived == "dead_letter":
        return way, failure_of(DeadReason.CONTACT_ARCHIVED, answer)
    way, step = _follow(way, _named(answer), answer)
    return (way, step) if isinstance(step, Failure) else (way, Do.UNARCHIVE)


def _unarchived(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    return way, Do.PUT


def _cannot_be_had(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    return way, failure_of(DeadReason.CONTACT_GONE, answer)


def _taken_by_some(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    contested = [name for name in CONTESTED if name in sent and name != way.identity.field]
    if contested:
        return _leaving_out(way, contested), Do.PUT if way.contact_id else Do.CREATE
    if intercom.says_ambiguous(answer):
        return way, failure_of(DeadReason.CONTACT_AMBIGUOUS, answer)
    if Do.CREATE in way.created:
        return way, failure_of(DeadReason.CONTACT_CONFLICT, answer)
    return _creating(way, Do.CREATE, answer)


def _put_is_taken(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Leave out the e-mail or id that another contact has."""
    contested = [name for name in CONTESTED if name in sent]
    if not contested or (way.adopts and way.identity.field in contested):
        return way, failure_of(DeadReason.CONTACT_CONFLICT, answer)
    return _leaving_out(way, contested), Do.PUT


def _gone(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Create another contact, because the known one is missing."""
    way = _replace(
        way,
        contact_id="",
        owner="",
        is_heir=False,
        is_looked_at=False,
        is_another=False,
        adopts=False,
    )
    return _creating(way, Do.CREATE, answer)


def _disowned(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    """Create another contact, because the known one belongs to another user now."""
    way = _replace(way, disowned=way.disowned | {str(answer.contact.get("id", ""))})
    return _gone(way, answer, sent)


def _merged(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    heir = intercom.merged_into(answer)
    if heir is None:
        return way, failure_of(DeadReason.CONTACT_GONE, answer)
    way, step = _follow(_replace(way, is_heir=True, owner="", adopts=False), heir, answer)
    way = _noting(way, was_there=True)
    return (way, step) if isinstance(step, Failure) else (way, Do.LOOK)


def _without_field(way: Way, answer: Answer, sent: Collection[str]) -> Next:
    field = refused_field(answer, sent)
    what = (
        "left out, no teammate has this id" if field == OWNER else "left out, Intercom refuses it"
    )
    reason = AdjustmentReason.TYPE_MISMATCH
    if intercom.unknown_attribute(answer) == field.removeprefix(ATTRIBUTE_PREFIX):
        reason, what = AdjustmentReason.UNKNOWN_ATTRIBUTE, "left out"
    adjustment = Adjustment(reason, field, what)
    way = _replace(way, without=way.without | {field}, left_out=(*way.left_out, adjustment))
    return way, Do.PUT if way.contact_id else Do.CREATE


# --- changes of the state -----------------------------------------------------------------


def _replace(way: Way, **changes: object) -> Way:
    return msgspec.structs.replace(way, **changes)


def _noting(way: Way, *, was_there: bool) -> Way:
    """Note whether a first contact existed. The first note counts."""
    return way if way.was_there is not None else _replace(way, was_there=was_there)


def _leaving_out(way: Way, fields: Collection[str]) -> Way:
    adjustments = [
        Adjustment(AdjustmentReason.TAKEN, field, "left out, another contact has it")
        for field in fields
    ]
    without = way.without | set(fields)
    return _replace(way, without=without, left_out=(*way.left_out, *adjustments))


def _creating(way: Way, how: Do, answer: Answer) -> Next:
    """Create the contact in another form, or in place of a missing one: once each."""
    if how in way.created:
        return way, failure_of(DeadReason.CONTACT_GONE, answer)
    return _replace(way, created=way.created | {how}), how


def _follow(way: Way, contact_id: str, answer: Answer) -> Next:
    """Go on with another contact, once for each."""
    if contact_id in way.followed:
        return way, failure_of(DeadReason.CONTACT_GONE, answer)
    followed = way.followed | {contact_id}
    way = _replace(way, contact_id=contact_id, is_looked_at=False, is_another=True)
    return _replace(way, followed=followed), Do.PUT


def _named(answer: Answer) -> str:
    return intercom.named_contact(intercom.parse_error(answer).message) or ""


def failure_of(reason: DeadReason, answer: Answer) -> Failure:
    """Return an answer as the failure that ends an update."""
    said = intercom.parse_error(answer)
    return Failure(reason, answer.status, said.code, said.message, said.request_id)


TABLE: Final[Mapping[tuple[Do, Said], Callable[[Way, Answer, Collection[str]], Next]]] = {
    (Do.FIND, Said.OURS): _found,
    (Do.FIND, Said.GONE): _not_found,
    (Do.FIND, Said.NAMELESS): _not_found,
    (Do.FIND, Said.ANOTHERS): _not_found,
    (Do.FIND, Said.MERGED): _merged,
    (Do.SEARCH, Said.OURS): _found_in_index,
    (Do.SEARCH, Said.GONE): _not_found,
    (Do.SEARCH, Said.NAMELESS): _not_found,
    (Do.SEARCH, Said.ANOTHERS): _not_found,
    (Do.SEARCH, Said.TAKEN_BY_SOME): _found_several,
    (Do.CREATE, Said.OURS): _created,
    (Do.CREATE, Said.NAMELESS): _created,
    (Do.CREATE, Said.ANOTHERS): _created,
    (Do.CREATE, Said.TAKEN): _taken,
    (Do.CREATE, Said.TAKEN_ARCHIVED): _taken_by_archived,
    (Do.CREATE, Said.TAKEN_BY_SOME): _taken_by_some,
    (Do.CREATE, Said.REFUSED_FIELD): _without_field,
    (Do.CREATE_EMPTY, Said.OURS): _created_empty,
    (Do.CREATE_EMPTY, Said.NAMELESS): _created_empty,
    (Do.CREATE_EMPTY, Said.ANOTHERS): _created_empty,
    (Do.CREATE_EMPTY, Said.TAKEN): _taken,
    (Do.CREATE_EMPTY, Said.TAKEN_ARCHIVED): _taken_by_archived,
    (Do.CREATE_EMPTY, Said.TAKEN_BY_SOME): _taken_by_some,
    (Do.CREATE_EMPTY, Said.REFUSED_FIELD): _without_field,
    (Do.CREATE_BARE, Said.OURS): _created_empty,
    (Do.CREATE_BARE, Said.NAMELESS): _created_empty,
    (Do.CREATE_BARE, Said.ANOTHERS): _created_empty,
    (Do.CREATE_BARE, Said.TAKEN): _taken,
    (Do.CREATE_BARE, Said.TAKEN_ARCHIVED): _is_archived,
    (Do.CREATE_BARE, Said.TAKEN_BY_SOME): _taken_by_some,
    (Do.LOOK, Said.OURS): _looked,
    (Do.LOOK, Said.NAMELESS): _looked_nameless,
    (Do.LOOK, Said.ANOTHERS): _is_anothers,
    (Do.LOOK, Said.GONE): _gone,
    (Do.LOOK, Said.MERGED): _merged,
    (Do.PUT, Said.OURS): _done,
    (Do.PUT, Said.NAMELESS): _disowned,
    (Do.PUT, Said.ANOTHERS): _disowned,
    (Do.PUT, Said.TAKEN): _put_is_taken,
    (Do.PUT, Said.TAKEN_ARCHIVED): _put_is_taken,
    (Do.PUT, Said.TAKEN_BY_SOME): _put_is_taken,
    (Do.PUT, Said.GONE): _gone,
    (Do.PUT, Said.MERGED): _merged,
    (Do.PUT, Said.REFUSED_FIELD): _without_field,
    (Do.UNARCHIVE, Said.OURS): _unarchived,
    (Do.UNARCHIVE, Said.GONE): _cannot_be_had,
    (Do.UNARCHIVE, Said.MERGED): _cannot_be_had,
    (Do.UNARCHIVE, Said.REFUSED): _cannot_be_had,
    (Do.UNARCHIVE, Said.REFUSED_FIELD): _cannot_be_had,
}
"""The consequence of each answer to each step. Any other answer ends the update (``_refused``)."""
