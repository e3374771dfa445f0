"""What goes wrong, by consequence; causes travel as fields.

    EngineError
    ├── SettingsError     nothing will work until somebody changes the settings (exit 2)
    ├── DataDirInUse      another process has the data directory (exit 4)
    ├── SpoolError        the spool cannot do it now: a batch is refused, a delivery waits
    └── Failed            an answer, or none, to one delivery
        ├── ParkUser      this user later; others go on
        └── DeadLetter    this one never

What concerns *everybody* (429, 401, an outage) is no error at all here: the gate waits and sends
again, and its callers never hear of it.
"""

from __future__ import annotations

import msgspec

from amplitude_intercom.engine.near import did_you_mean


class EngineError(Exception):
    """Root of everything the engine raises on purpose."""


class SettingsError(EngineError):
    """The settings cannot be used; the message names the key and what was expected."""


class DataDirInUse(EngineError):
    """Another process writes in this data directory."""


class SpoolError(EngineError):
    """The spool cannot take or change anything now.

    ``reason``: ``spool_full`` (its cap is reached), ``disk_full`` (the disk has no room left),
    ``spool_failing`` (disk or database error).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Failure(msgspec.Struct, frozen=True):
    """Why a delivery failed, as kept in dead letters. ``status`` 0: there was no answer."""

    reason: str
    status: int = 0
    code: str = ""
    message: str = ""
    request_id: str = ""


class Failed(EngineError):
    """One delivery failed; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason} {failure.status} {failure.code} {failure.message}")
        self.failure = failure


class ParkUser(Failed):
    """This user's trouble: its records wait, everybody else's flow on."""


class DeadLetter(Failed):
    """Sending this record again would be refused again."""


DROP_REASONS = {
    "not_selected": "no selection names its event type",
    "filtered_out": "a selection names its type, but a `where` clause does not hold",
    "events_disabled": "`sync.events.enabled` is false",
    "users_disabled": "an identify, and `sync.users.enabled` is false",
    "sync_disabled": "`sync.enabled` is false",
    "no_identity": "the property that `sync.mapping` takes the user from is missing or empty",
    "loop_guard": "an `[Intercom] …` event that came back through Amplitude",
    "group_identify": "Amplitude groups are not forwarded",
    "reserved_name": "an event type that Amplitude itself reserves",
    "duplicate": "it was accepted before, within `spool.dedupe_window_s`: the same insert id of its"
    " project and device, or the same bytes",
    "unchanged": "the contact is known to have these values already, so there is nothing to write",
    "unknown_user": "Intercom does not know the user, and `sync.events.unknown_user` is `drop`",
    "discarded": "a dead letter that somebody discarded",
}
"""Why an event is dropped on purpose: the closed set, as counted and as the README lists it."""

DEAD_REASONS = {
    "invalid_json": "a line that is not JSON",
    "not_an_object": "a line that is JSON, but no object",
    "missing_field": "an event without event type, or without user and device id",
    "invalid_field": "a field of the wrong kind, or a time that cannot be read",
    "invalid_id": "a user or device id that Amplitude refuses",
    "invalid_identity": "a user id or e-mail that Intercom cannot take",
    "too_old": "its time is further back than `sync.events.max_age_s`",
    "too_large": "over `http.max_event_bytes` or `forward.max_line_bytes`; its beginning is kept",
    "user_not_found": "Intercom did not know the user for the whole retry window",
    "user_failing": "Intercom kept failing on this user's call, and on nobody else's",
    "contact_archived": "the contact is archived, and `sync.users.archived` says to leave it so",
    "contact_gone": "the contact is deleted or merged and cannot be brought back",
    "contact_conflict": "another contact owns the e-mail or id, and overwriting it would be wrong",
    "contact_ambiguous": "several contacts share the e-mail",
    "event_type_limit": "Intercom takes no more event names than it has (120)",
    "refused": "Intercom refused the call for another reason: see status, code and message",
    "internal": "a fault of this program; the log has it",
    "corrupt": "the record on disk does not match its checksum",
}
"""Why an event ends as a dead letter: the closed set, as counted and as the README lists it."""


def unknown_reason(reason: str) -> str:
    """Return the message for a reason that no dead letter can have."""
    known = ", ".join(DEAD_REASONS)
    hint = did_you_mean(reason, DEAD_REASONS)
    return f"no dead letter has the reason `{reason[:64]}`, there are {known}{hint}"
