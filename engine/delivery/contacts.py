"""Finding, creating and updating contacts, in the fewest calls.

Known to the directory: one ``PUT``, or none when nothing changed. Unknown: create first, since a
``POST`` never updates; a 409 names the contact that is there, and that one is updated. No search,
whose index lags minutes, and so no race: two creators end at the same contact.

An answer that names another contact is followed once for each of these, never twice:

    409 live       update the contact it names
    409 archived   unarchive it, then update; or leave it, by setting
    410            update the contact that its ``Link`` names (the one was merged away)
    404            create it again, with all that is known of it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from amplitude_intercom.engine.delivery.attributes import Attributes
from amplitude_intercom.engine.delivery.calls import NotAnswered, NotNow
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.errors import Failure, Undeliverable
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason
from amplitude_intercom.engine.rules.bodies import ATTRIBUTE_PREFIX, contact_body, creation_body
from amplitude_intercom.engine.rules.contacts import ContactRules, Types, can_be_cleared
from amplitude_intercom.engine.rules.user_properties import CLEAR_ALL, apply, needs_state
from amplitude_intercom.engine.spool.rows import Contact
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

MAX_CALLS = 12
"""Calls that one update may take: more means that the answers lead in a circle."""

OWNER = "owner_id"
_NO_SUCH_OWNER = Adjustment(
    AdjustmentReason.TYPE_MISMATCH, OWNER, "left out, no teammate has this id"
)


class Directory(Protocol):
    """Where known contacts are kept (the spool)."""

    async def contact(self, user: str) -> Contact | None: ...
    async def remember(self, user: str, contact: Contact) -> None: ...


class Upserted(msgspec.Struct, frozen=True):
    """What an update came to: whether a call was needed, and what is known of the contact now."""

    called: bool
    contact: Contact


class TurnCalls:
    """The calls of one turn."""

    def __init__(self, gate: Gate, turn: Turn) -> None:
        self._gate = gate
        self._turn = turn

    async def call(self, request: intercom.Request) -> Answer:
        """Return the answer to a call.

        Raises:
            NotNow: there is none.
        """
        outcome = await self._gate.call(request, self._turn)
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        return outcome.answer


class Contacts:
    """One sync's contacts."""

    def __init__(
        self,
        directory: Directory,
        rules: ContactRules,
        *,
        attributes: Attributes,
        archived: Literal["unarchive", "dead_letter"],
        adjusted: Callable[[Iterable[str]], None],
    ) -> None:
        """``adjusted`` counts what is changed on the way, by reason."""
        self._directory = directory
        self._rules = rules
        self._attributes = attributes
        self._archived = archived
        self._adjusted = adjusted
        self.unknown_attributes: Counter[str] = Counter()
        """Attributes that the workspace does not have, and how often each was left out."""

    async def upsert(self, updates: Sequence[ContactUpdate], calls: TurnCalls) -> Upserted:
        """Bring the updates of one user to its contact, in their order, in one write.

        What is known of the contact afterwards is returned, for the caller to keep: together with
        the settling of what it settles by it, so that nothing is applied twice.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: Intercom does not take it, and never will.
        """
        update = _Upsert(self, updates, calls)
        upserted = await update.run()
        self.count(update.adjustments)
        return upserted

    async def ensure(self, identity: Identity, calls: TurnCalls) -> Upserted:
        """Make sure that a contact exists, without touching one that does.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: Intercom does not take it, and never will.
        """
        return await _Upsert(self, [ContactUpdate(identity, {})], calls).run_again()

    def count(self, adjustments: Sequence[Adjustment]) -> None:
        """Count what one update changed on the way."""
        self._adjusted(adjustment.reason for adjustment in adjustments)
        for adjustment in adjustments:
            if adjustment.reason == "unknown_attribute":
                self.unknown_attributes[adjustment.where] += 1


class _Upsert:
    """One update on its way; lives for a few calls."""

    def __init__(
        self, contacts: Contacts, updates: Sequence[ContactUpdate], calls: TurnCalls
    ) -> None:
        self._contacts = contacts
        self._turn_calls = calls
        self._directory = contacts._directory
        self._rules = contacts._rules
        self._attributes = contacts._attributes
        self._adjustments: list[Adjustment] = []
        self._problems: list[Adjustment] = []
        self._updates = list(updates)
        self._identity = updates[0].identity
        self._user = self._identity.value
        self._calls = 0
        self._nameless = False  # the contact has no identifier yet, and gets this user's
        self._tried: set[str] = set()
        self._refused: dict[str, Any] = {}  # and not to be written again before it changes

    @property
    def adjustments(self) -> list[Adjustment]:
        """What the values that were written had to become."""
        return self._adjustments

    async def run(self) -> Upserted:
        known = await self._directory.contact(self._user)
        if known is None:
            return await self._create({})
        last_id = self._updates[-1].record_id
        if last_id and known.applied_id == last_id:  # done before: none of it may be done twice
            if known.contact_id:
                return Upserted(True, known)
            self._updates = [ContactUpdate(self._identity, {}, last_id)]
        if not known.contact_id:
            return await self._create(known.properties)
        return await self._update(known)

    async def run_again(self) -> Upserted:
        """Create the contact though it is known: Intercom has just said that it is not there."""
        known = await self._directory.contact(self._user)
        if known is None:
            return await self._create({})
        upserted = await self._create(known.properties)
        contact = msgspec.structs.replace(upserted.contact, applied_id=known.applied_id)
        return msgspec.structs.replace(upserted, contact=contact)

    def _apply(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Return a user's properties after all updates."""
        state = dict(properties)
        self._problems = []
        for update in self._updates:
            state, problems = apply(update.operations, state)
            self._problems += [
                Adjustment(AdjustmentReason.OPERATION_REFUSED, "user_properties", text)
                for text in problems
            ]
        return state

    # --- the two ways ---------------------------------------------------------------------

    async def _create(self, known_properties: Mapping[str, Any]) -> Upserted:
        properties = self._apply(known_properties)
        fields = await self._fields(properties)
        answer, written = await self._write(None, fields)
        if answer.status in (200, 201):
            contact_id = str(answer.contact.get("id", ""))
            return self._done(contact_id, properties, written, complete=True)
        if answer.status == 409:
            return await self._adopt(answer, written, known_properties)
        raise Undeliverable(_failure(DeadReason.REFUSED, answer))

    async def _update(self, known: Contact) -> Upserted:
        """Write what differs from what was last written; no difference, no call."""
        if not known.complete and self._needs_state():
            answer = await self._call(intercom.get_contact(known.contact_id))
            if answer.status != 200:
                return await self._redirect(answer, known)
            theirs = self._rules.properties_of_contact(answer.contact)
            known = msgspec.structs.replace(
                known, properties={**theirs, **known.properties}, complete=True
            )
            await self._keep(known)
        properties = self._apply(known.properties)
        changes = await self._changes(properties, known)
        if not changes:
            done = self._done(known.contact_id, properties, known.written, complete=known.complete)
            return msgspec.structs.replace(done, called=self._calls > 0)
        answer, written = await self._write(known.contact_id, changes)
        if answer.status == 200:
            everything = {**known.written, **written}
            return self._done(known.contact_id, properties, everything, complete=known.complete)
        return await self._redirect(answer, known)

    async def _changes(self, properties: Mapping[str, Any], known: Contact) -> dict[str, Any]:
        fields = await self._fields(properties)
        changes = differences(
            self._rules,
            self._attributes,
            self._identity.field,
            self._updates,
            properties,
            fields,
            known.written,
        )
        if self._nameless:
            changes[self._identity.field] = self._identity.value
        return changes

    async def _redirect(self, answer: Answer, known: Contact) -> Upserted:
        """Follow an answer that says that the contact is not, or not only, the one we knew."""
        if answer.status == 404:
            self._once("created again")
            return await self._create(known.properties)
        if answer.status == 410:
            merged_into = intercom.merged_into(answer)
            if merged_into is None:
                raise Undeliverable(_failure(DeadReason.CONTACT_GONE, answer))
            self._once(merged_into)
            return await self._update(Contact(merged_into, known.properties, {}))
        if answer.status == 409:
            return await self._adopt(answer, {}, known.properties, instead_of=known.contact_id)
        raise Undeliverable(_failure(DeadReason.REFUSED, answer))

    # --- a contact that is there already --------------------------------------------------

    async def _adopt(
        self,
        conflict: Answer,
        sent: Mapping[str, Any],
        known_properties: Mapping[str, Any],
        *,
        instead_of: str | None = None,
    ) -> Upserted:
        """Update the contact that a 409 names, if it is this user's.

        Where the conflict may be about another field than the identifier, or comes from an update
        (``instead_of``), the contact is read first: it may be somebody else's.
        """
        message = intercom.parse_error(conflict).message
        contact_id = intercom.named_contact(message)
        if contact_id is None:
            raise Undeliverable(_failure(DeadReason.CONTACT_AMBIGUOUS, conflict))
        if contact_id == instead_of:
            raise Undeliverable(_failure(DeadReason.CONTACT_CONFLICT, conflict))
        self._once(contact_id)
        if intercom.says_archived(conflict):
            await self._unarchive(contact_id, conflict)
        found = Contact(contact_id, dict(known_properties), {})
        if instead_of or self._may_be_another(sent) or self._needs_state():
            contact = await self._read(contact_id, conflict, must_be_mine=instead_of is not None)
            theirs = self._rules.properties_of_contact(contact)
            self._nameless = not contact.get(self._identity.field)
            mine = sent and not self._nameless and _is_just_created(contact, sent)
            if self._needs_state() and mine:
                return self._done(
                    contact_id, self._apply(known_properties), dict(sent), complete=True
                )
            found = Contact(contact_id, {**theirs, **known_properties}, {}, complete=True)
            if not self._nameless:  # else the next attempt has to find out again that it is
                await self._keep(found)
        upserted = await self._update(found)
        return msgspec.structs.replace(upserted, called=True)

    async def _keep(self, found: Contact) -> None:
        """Keep what a contact held before operations that need it: a lost answer must not lead to
        their being applied to their own result."""
        if self._needs_state():
            await self._directory.remember(self._user, found)

    def _needs_state(self) -> bool:
        return any(needs_state(update.operations) for update in self._updates)

    def _may_be_another(self, sent: Mapping[str, Any]) -> bool:
        """Whether the 409 may mean another field than the identifier: then look before writing."""
        return any(f in sent for f in ("email", "external_id") if f != self._identity.field)

    async def _read(
        self, contact_id: str, conflict: Answer, *, must_be_mine: bool
    ) -> dict[str, Any]:
        """Return a contact, once it is clear whose it is.

        A contact without the identifier may become this user's, unless ``must_be_mine``.
        """
        answer = await self._call(intercom.get_contact(contact_id))
        if answer.status != 200:
            raise Undeliverable(_failure(DeadReason.CONTACT_GONE, answer))
        contact = answer.contact
        theirs = str(contact.get(self._identity.field) or "")
        if not self._is_mine(theirs) and (theirs or must_be_mine):
            raise Undeliverable(_failure(DeadReason.CONTACT_CONFLICT, conflict))
        return contact

    def _is_mine(self, value: str) -> bool:
        if self._identity.field == "email":
            return value.strip().lower() == self._identity.value
        return value == self._identity.value

    async def _unarchive(self, contact_id: str, conflict: Answer) -> None:
        if self._contacts._archived == "dead_letter":
            raise Undeliverable(_failure(DeadReason.CONTACT_ARCHIVED, conflict))
        answer = await self._call(intercom.unarchive_contact(contact_id))
        if answer.status != 200:
            raise Undeliverable(_failure(DeadReason.CONTACT_GONE, answer))

    # --- calls ----------------------------------------------------------------------------

    async def _write(
        self, contact_id: str | None, fields: Mapping[str, Any]
    ) -> tuple[Answer, dict[str, Any]]:
        """Create or update, leaving out what the workspace turns out not to have: an attribute, or
        a teammate to be the owner."""
        self._count_call()
        written = dict(fields)
        while True:
            if contact_id is None:
                request = intercom.create_contact(creation_body(self._identity, written))
            else:
                request = intercom.update_contact(contact_id, contact_body(written))
            answer = await self._turn_calls.call(request)
            refused = _refused_field(answer)
            if refused not in written:
                return answer, written
            value = written.pop(refused)
            if refused == OWNER:
                self._refused[refused] = value
                self._adjustments.append(_NO_SUCH_OWNER)
            else:
                self._attributes.learn_missing(refused.removeprefix(ATTRIBUTE_PREFIX))
                self._adjustments.append(
                    Adjustment(AdjustmentReason.UNKNOWN_ATTRIBUTE, refused, "left out")
                )

    def _count_call(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise Undeliverable(
                Failure(DeadReason.REFUSED, message="Intercom's answers lead in a circle")
            )

    async def _call(self, request: intercom.Request) -> Answer:
        self._count_call()
        return await self._turn_calls.call(request)

    def _once(self, step: str) -> None:
        if step in self._tried:
            raise Undeliverable(Failure(DeadReason.CONTACT_GONE, message=f"{step}: tried before"))
        self._tried.add(step)

    def _done(
        self,
        contact_id: str,
        properties: dict[str, Any],
        written: dict[str, Any],
        *,
        complete: bool,
    ) -> Upserted:
        applied_id = self._updates[-1].record_id
        known = {**written, **self._refused}
        return Upserted(True, Contact(contact_id, properties, known, applied_id, complete))

    # --- fields ---------------------------------------------------------------------------

    async def _fields(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contact's fields, as the workspace takes them."""
        await self._attributes.make_ready(self._rules.attributes_of(properties))
        fields, adjustments = self._rules.contact_fields(properties, self._attributes)
        self._adjustments = [*self._problems, *adjustments]
        for name in self._refused.keys() & fields.keys():
            del fields[name]
            self._adjustments.append(_NO_SUCH_OWNER)
        return fields


def differences(
    rules: ContactRules,
    types: Types,
    identifier: str,
    updates: Sequence[ContactUpdate],
    properties: Mapping[str, Any],
    fields: Mapping[str, Any],
    written: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields that differ from what was ``written`` last, null for what is cleared.

    A property that was unset, or no longer has a value, clears its field. One that has a value
    which does not fit keeps what it has in Intercom.
    """
    unset = {name for update in updates for name in update.operations.get("$unset", ())}
    cleared = any(CLEAR_ALL in update.operations for update in updates)
    empty = {
        name: None
        for source, name in rules.properties.items()
        if properties.get(source) is None
        and (cleared or source in unset or name in written)
        and name != identifier
        and can_be_cleared(name, types)
    }
    unsaid = object()
    return {
        name: value
        for name, value in {**fields, **empty}.items()
        if not _same(written.get(name, unsaid), value)
    }


def _is_just_created(contact: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    """Whether a contact holds what we sent and is as it was created: the answer was lost."""
    custom = contact.get("custom_attributes") or {}
    flat = {**contact, **{ATTRIBUTE_PREFIX + name: value for name, value in custom.items()}}
    untouched = contact.get("created_at") == contact.get("updated_at")
    return untouched and all(_same(flat.get(name), value) for name, value in sent.items())


def _same(first: Any, other: Any) -> bool:
    """Whether two field values are the same to Intercom: ``True`` is not 1."""
    return type(first) is type(other) and bool(first == other)


def _refused_field(answer: Answer) -> str:
    """Return the field for which a write was refused and without which it may be taken."""
    if intercom.is_nobodys_owner(answer):
        return OWNER
    name = intercom.unknown_attribute(answer)
    return ATTRIBUTE_PREFIX + name if name else ""


def _failure(reason: DeadReason, answer: Answer) -> Failure:
    said = intercom.parse_error(answer)
    return Failure(reason, answer.status, said.code, said.message, said.request_id)
