"""Which contact the user of an event is, by ``[sync.mapping]``."""

from __future__ import annotations

from typing import Any, Final

from amplitude_intercom.engine.envelope import Identity
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.verdicts import Reject
from amplitude_intercom.engine.settings import Mapping
from amplitude_intercom.transports.amplitude import (
    MAX_AMPLITUDE_TEXT,
    Event,
    Head,
    decode_event,
    legible,
)

MAX_ID: Final = 255
"""Characters of an id or e-mail: how long they may be is not documented."""


class Who:
    """Reads the key of a contact: an external id or an e-mail."""

    def __init__(self, mapping: Mapping) -> None:
        self.field = mapping.identifier
        """``external_id`` or ``email``."""
        self._text = mapping.source
        self._source = paths.parse(mapping.source)
        self._is_user_id = self._source.name == "user_id"
        self._is_email = mapping.identifier == "email"
        self.in_head = not self._source.scope
        """Whether the key can be read from an event's head alone."""

    def of_head(self, head: Head) -> str:
        """Return the contact's key, or an empty text where there is none."""
        return self._normal(head.user_id if self._is_user_id else head.device_id)

    def of_event(self, event: Event) -> str:
        """Return the contact's key, or an empty text where there is none."""
        return self._normal(paths.read(self._source, event.fields))

    def of_raw(self, raw: bytes) -> str:
        """Return the key of an event, or an empty text where there is none, or it is illegible."""
        try:
            in_head = self.in_head
            user = self.of_head(legible(raw)) if in_head else self.of_event(decode_event(raw))
            user.encode()
        except Exception:  # anything may be wrong with a bad one
            return ""
        return user if len(user) <= MAX_AMPLITUDE_TEXT else ""

    def _normal(self, value: Any) -> str:
        """E-mails compare without case and outer space; ids are taken as they are."""
        if type(value) is str:
            text = value
        elif type(value) is int:
            text = _digits(value)
        else:
            return ""
        return text.strip().lower() if self._is_email else text

    def identity(self, key: str) -> Identity | Reject:
        """Return what Intercom finds the contact by."""
        takes = 0 < len(key) <= MAX_ID and key.isprintable() and not key.isspace()
        if takes and (self.field == "external_id" or _is_address(key)):
            return Identity(self.field, key)
        read = f"{key[:MAX_ID]!r}" if key else f"nothing is in `{self._text}`"
        return Reject(DeadReason.INVALID_IDENTITY, f"{self.field}: {read}")


def _is_address(key: str) -> bool:
    local, at, domain = key.rpartition("@")
    return bool(local and at and domain) and " " not in key


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python is willing to write: nobody's id
        return ""
