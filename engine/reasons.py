"""The reasons for which an event is dropped, dead or adjusted: closed sets, with explanations.

Counters, logs and tables hold the word; ``amplitude-intercom explain``, the reference and messages
take its sentence and its remedy from here.
"""

from __future__ import annotations

import msgspec

from amplitude_intercom.engine.did_you_mean import did_you_mean
from amplitude_intercom.transports.reasons import Reason


class DropReason(Reason):
    """The reason for which a received event is dropped on purpose."""

    NOT_SELECTED = (
        "not_selected",
        "no selection names its event type",
        "to send it, name its type in `sync.events.select`",
    )
    FILTERED_OUT = (
        "filtered_out",
        "a selection names its type, but a `where` clause does not hold",
        "`preview` shows which events pass; change the clause where it is wrong",
    )
    EVENTS_DISABLED = (
        "events_disabled",
        "`sync.events.enabled` is false",
        "set it to true to send events",
    )
    USERS_DISABLED = (
        "users_disabled",
        "an identify, and `sync.users.enabled` is false",
        "set it to true to write contacts",
    )
    SYNC_DISABLED = ("sync_disabled", "`sync.enabled` is false", "set it to true to deliver")
    NO_IDENTITY = (
        "no_identity",
        "the property that `sync.mapping` takes the user from is missing or empty",
        "set a user id in the client, or choose another `sync.mapping.from`",
    )
    LOOP_GUARD = (
        "loop_guard",
        "an `[Intercom] …` event that came back through Amplitude",
        "nothing, unless it should go round: `sync.events.loop_guard = false`",
    )
    GROUP_IDENTIFY = ("group_identify", "Amplitude groups are not forwarded")
    RESERVED_NAME = ("reserved_name", "an event type that Amplitude itself reserves")
    DUPLICATE = (
        "duplicate",
        "it was accepted before, within `spool.dedupe_window_s`: the same insert id of its project"
        " and device, or the same bytes",
        "nothing, unless two different events share an insert id: then correct the client",
    )
    UNCHANGED = (
        "unchanged",
        "the contact is known to have these values already, so there is nothing to write",
    )
    UNKNOWN_USER = (
        "unknown_user",
        "Intercom does not know the user, and `sync.events.unknown_user` is `drop`",
        "identify the user before, or set `unknown_user` to `park` or `create`",
    )
    DISCARDED = ("discarded", "a dead letter that somebody discarded")
    RELAY_OVERFLOW = (
        "relay_overflow",
        "Amplitude took nothing for so long that the relay's share of the spool was full, and this"
        " was the oldest of it",
        "see `status` for what Amplitude answers, or raise `spool.max_bytes`",
    )
    EXPIRED_LETTER = (
        "expired_letter",
        "a dead letter that was kept for `spool.dead_letters_days`, or until there were too many",
        "replay or discard dead letters in time, or raise `spool.dead_letters_max_bytes`",
    )


_CORRECT_CLIENT = "correct the client, and send it again"


class DeadReason(Reason):
    """Why an event is a dead letter."""

    INVALID_JSON = ("invalid_json", "a line that is not JSON", _CORRECT_CLIENT)
    NOT_AN_OBJECT = ("not_an_object", "a line that is JSON, but no object", _CORRECT_CLIENT)
    MISSING_FIELD = (
        "missing_field",
        "an event without event type, or without user and device id",
        _CORRECT_CLIENT,
    )
    INVALID_FIELD = (
        "invalid_field",
        "a field of the wrong kind, or a time that cannot be read",
        _CORRECT_CLIENT,
    )
    INVALID_ID = (
        "invalid_id",
        "a user or device id that Amplitude refuses",
        "set a real id in the client: not `unknown`, `null`, `0` and their like",
    )
    INVALID_IDENTITY = (
        "invalid_identity",
        "a user id or e-mail that Intercom cannot take",
        "correct it where `sync.mapping.from` takes it from, then replay",
    )
    TOO_OLD = (
        "too_old",
        "its time is further back than `sync.events.max_age_s`",
        "raise `sync.events.max_age_s` and replay, or discard it",
    )
    TOO_LARGE = (
        "too_large",
        "over `http.max_event_bytes` or `forward.max_line_bytes`; its beginning is kept",
        "raise the limit, and send it again: a replay would send the beginning only",
    )
    AMPLITUDE_REFUSED = (
        "amplitude_refused",
        "Amplitude has refused this event of a relay; the message is Amplitude's",
        "correct the client, or the project in Amplitude, then replay or discard it",
    )
    AMPLITUDE_FAILING = (
        "amplitude_failing",
        "Amplitude, or a proxy before it, kept failing on this event of a relay, and took others",
        "look at status and message, then replay or discard it",
    )
    INVALID_API_KEY = (
        "invalid_api_key",
        "for hours Amplitude has refused the API key that this event of a relay came with",
        "correct the key in the client, or `relay.amplitude_api_keys`; then replay or discard it",
    )
    USER_NOT_FOUND = (
        "user_not_found",
        "Intercom does not know the user: for the retry window, or as long as `unknown_user` says",
        "create the contact, or identify the user; replay what is dead already",
    )
    USER_FAILING = (
        "user_failing",
        "Intercom kept failing on this user's call, and on nobody else's",
        "look at status and message, open the contact in Intercom, then replay",
    )
    CONTACT_ARCHIVED = (
        "contact_archived",
        "the contact is archived, and `sync.users.archived` says to leave it so",
        "unarchive it in Intercom and replay, or set `sync.users.archived`",
    )
    CONTACT_GONE = (
        "contact_gone",
        "the contact is deleted or merged and cannot be brought back",
        "look at the user in Intercom; replay once there is a contact",
    )
    CONTACT_CONFLICT = (
        "contact_conflict",
        "another contact owns the e-mail or id, and overwriting it would be wrong",
        "merge or correct the two contacts in Intercom, then replay",
    )
    CONTACT_AMBIGUOUS = (
        "contact_ambiguous",
        "several contacts share the e-mail",
        "merge them in Intercom and replay, or map by External ID",
    )
    EVENT_TYPE_LIMIT = (
        "event_type_limit",
        "Intercom takes no more event names than it has (120)",
        "archive unused event names in Intercom, or select fewer types, then replay",
    )
    REFUSED = (
        "refused",
        "Intercom refused the call for another reason: see status, code and message",
        "correct what the message names, then replay",
    )
    INTERNAL = (
        "internal",
        "a fault of this program; the log has it",
        "report it with the traceback in the log; replay after an update",
    )
    CORRUPT = (
        "corrupt",
        "the record on disk does not match its checksum",
        "look at the disk with `spool verify`; send the event again from its source",
    )


class AdjustmentReason(Reason):
    """What was changed in an event or a contact, so that Intercom takes it."""

    TEXT_CUT = ("text_cut", "a text of more than 255 characters was cut")
    CHARACTERS_CLEANED = ("characters_cleaned", "control characters in a text became spaces")
    KEY_CLEANED = (
        "key_cleaned",
        "characters that Intercom does not take in a metadata key became `_`",
    )
    KEY_COLLISION = (
        "key_collision",
        "a metadata key equal to an earlier one but for case was left out",
        "give one of the two another name: `{ from = …, to = … }`",
    )
    TOO_MANY_KEYS = (
        "too_many_keys",
        "metadata beyond `sync.events.metadata_limit` was left out, the last first",
        "select fewer properties, the most important first",
    )
    NAME_CLEANED = (
        "name_cleaned",
        "`.`, `$` and control characters in an event name became `-`, or it was cut",
    )
    FLATTENED = ("flattened", "a nested object became keys of its own")
    NESTED_LEFT_OUT = (
        "nested_left_out",
        "a nested value that Intercom has no form for was left out",
        "select the values inside of it by their paths",
    )
    ARRAY_JOINED = ("array_joined", "an array became one text")
    ARRAY_LEFT_OUT = ("array_left_out", "an array was left out")
    EMPTY_LEFT_OUT = (
        "empty_left_out",
        "an empty object or array was left out; Intercom would ignore the event",
    )
    NOT_FINITE = ("not_finite", "a number that is none (NaN, an infinity) was left out")
    NUMBER_AS_TEXT = (
        "number_as_text",
        "a whole number beyond 2^53 became text, to keep its digits",
    )
    DATE_CONVERTED = (
        "date_converted",
        "a date or a time in milliseconds became Unix seconds",
    )
    AMOUNT_ROUNDED = (
        "amount_rounded",
        "an amount had more digits than its currency, and was rounded",
    )
    NOT_MONEY = (
        "not_money",
        "`money` names it, but it is no amount of a currency; it was sent as it is",
        "check the two properties that `sync.events.money` names",
    )
    TIME_UNIT = ("time_unit", "an event's time in seconds or microseconds was taken as such")
    TIME_AHEAD = (
        "time_ahead",
        "an event's clock was ahead; it got the moment of its acceptance",
        "look at the sender's clock, or raise `sync.events.max_ahead_s`",
    )
    SAME_SECOND = (
        "same_second",
        "an event has a second that a different one of its user and name has too: none was free"
        " within `sync.delivery.same_second_shift_s`, and Intercom may take the two for one",
        "send fewer events of one name a second for one user, or raise the shift",
    )
    TYPE_CONVERTED = ("type_converted", "a value was converted to its attribute's type")
    TYPE_MISMATCH = (
        "type_mismatch",
        "a value that does not fit its field or attribute was left out",
        "correct the value, or the attribute's type in Intercom",
    )
    UNKNOWN_ATTRIBUTE = (
        "unknown_attribute",
        "an attribute that the workspace does not have was left out",
        "create it in Intercom, or set `sync.users.create_missing_attributes`",
    )
    TAKEN = (
        "taken",
        "an e-mail or an id that another contact has was left out",
        "merge or correct the two contacts in Intercom",
    )
    OPERATION_REFUSED = (
        "operation_refused",
        "a user property operation that cannot be done was left out",
        "correct the operation in the client",
    )
    TOO_LARGE = (
        "too_large",
        "a request over 256 kB lost its last keys",
        "select fewer or shorter properties",
    )


class Failure(msgspec.Struct, frozen=True):
    """The reason of a failed delivery, with Intercom's words; kept in dead letters.

    ``status`` 0: there was no answer.
    """

    reason: DeadReason
    status: int = 0
    code: str = ""
    message: str = ""
    request_id: str = ""


DAMAGED = Failure(DeadReason.CORRUPT, message="the checksum does not match: damaged on disk")
"""The end of an event that is not on disk as it was written."""


def no_dead_reason(word: str) -> str:
    """Return the error message for a word that is not a reason of dead letters."""
    known = ", ".join(DeadReason)
    hint = did_you_mean(word, DeadReason)
    return f"no dead letter has the reason `{word[:64]}`, there are {known}{hint}"
