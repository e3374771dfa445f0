"""The user key of an event: the external id or e-mail of its contact, by ``[sync.mapping]``."""

from __future__ import annotations

from typing import Any, Final

from amplitude_intercom.engine.envelope import Identity
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.numerals import digits
from amplitude_intercom.engine.rules.verdicts import Reject
from amplitude_intercom.engine.settings import Mapping
from amplitude_intercom.transports.amplitude import MAX_AMPLITUDE_TEXT, Head
from amplitude_intercom.transports.amplitude_events import Event, decode_event
from amplitude_intercom.transports.amplitude_heads import legible

MAX_ID: Final = 255
"""Characters of an external id or e-mail. Intercom documents no limit."""


class UserKeys:
    """Reads user keys, and makes contact identities of them."""

    def __init__(self, mapping: Mapping) -> None:
        self.field = mapping.identifier
        """``external_id`` or ``email``."""
        self._text = mapping.source
        self._source = paths.parse(mapping.source)
        self._is_user_id = self._source.name == "user_id"
        self._is_email = mapping.identifier == "email"
        self.in_head = not self._source.scope
        """Whether an event's head has the key, so that its properties need not be decoded."""

    def of_head(self, head: Head) -> str:
        """Return the user key of an event's head; empty without one."""
        return self._normal(head.user_id if self._is_user_id else head.device_id)

    def of_event(self, event: Event) -> str:
        """Return the user key of an event; empty without one."""
        return self._normal(paths.read(self._source, event.fields))

    def of_raw(self, raw: bytes) -> str:
        """Return the user key of an event as it came; empty without one, or if it is illegible.

        Never raises.
        """
        try:
            in_head = self.in_head
            user = self.of_head(legible(raw)) if in_head else self.of_event(decode_event(raw))
            user.encode()
        except Exception:  # a rejected event may have any fault
            return ""
        return user if len(user) <= MAX_AMPLITUDE_TEXT else ""

    def _normal(self, value: Any) -> str:
        """Return a value as a key: e-mails stripped and in lower case, ids unchanged."""
        if type(value) is str:
            text = value
        elif type(value) is int:
            text = digits(value) or ""
        else:
            return ""
        return text.strip().lower() if self._is_email else text

    def identity(self, key: str) -> Identity | Reject:
        """Return the identity by which Intercom finds the contact of a user key."""
        takes = 0 < len(key) <= MAX_ID and key.isprintable() and not key.isspace()
        if takes and (self.field == "external_id" or _is_address(key)):
            return Identity(self.field, key)
        read = f"{key[:MAX_ID]!r}" if key else f"nothing is in `{self._text}`"
        return Reject(DeadReason.INVALID_IDENTITY, f"{self.field}: {read}")


def _is_address(key: str) -> bool:
    local, at, domain = key.rpartition("@")
    return bool(local and at and domain) and " " not in key
