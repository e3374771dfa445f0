"""The proposals of ``init`` from a sample: event types, properties, the contacts' identifier.

Nested values, names that Intercom does not take, and likely secrets are not proposed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.rules.texts import is_blank, is_legal_key
from amplitude_intercom.engine.setting_types import ANY_TYPE
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES
from amplitude_intercom.engine.wording import shown
from amplitude_intercom.transports.amplitude_events import Event, decode_event

MOST_NAMES: Final = 1_000
"""Names of one kind that are remembered."""

EXAMPLE_CHARACTERS: Final = 24
MOST_DIGITS: Final = 9
"""Of a number that stands for a name, and more digits than any list has."""

MOST_METADATA: Final = 10
"""Properties that are marked by default: the keys that Intercom's reference says are kept."""

EMAIL_SHARE: Final = 0.9
"""Of user ids that look like e-mail addresses, from which on contacts are found by e-mail."""

_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_WORDS: Final = frozenset(
    "apikey auth authorization card cookie credential credentials cvc cvv iban jwt key otp passcode"
    " passphrase passwd password pin secret session signature ssn token".split()
)
_SECRET_VALUE: Final = re.compile(
    r"eyJ[\w-]+\.[\w-]+.*|(sk|pk|rk|gh[opsu]|xox[a-z])[_-].*|(Bearer|Basic) .*"
    r"|(?=.*\d)(?=.*[A-Za-z])(?!.*-.*-.*-)[\w+/=-]{32,}"
)
"""Tokens by their shapes; a UUID, which has dashes, is an ordinary id."""

_INTERCOMS_OWN: Final = frozenset({"external_id", "role", "owner_id"})
"""Fields of a contact that other settings write, or that Intercom's own records decide."""


class Property(msgspec.Struct):
    """A property of the sample: how often it is there, its kind, and an example."""

    name: str
    count: int = 0
    kind: str = ""
    example: str = ""
    types: set[str] = msgspec.field(default_factory=set)
    """The event types that have it."""
    is_fit: bool = True
    """Whether it can be proposed."""


class Sample:
    """The names of a sample, counted."""

    def __init__(self, raws: Iterable[bytes] = ()) -> None:
        self.events = 0
        self.user_ids = 0
        self.emails = 0
        self._types: Counter[str] = Counter()
        self._of_events: dict[str, Property] = {}
        self._of_users: dict[str, Property] = {}
        for raw in raws:
            try:
                self._take(decode_event(raw))
            except ValueError:
                continue

    def _take(self, event: Event) -> None:
        if not event.event_type:
            return
        self.events += 1
        user_id = event.fields.get("user_id")
        if isinstance(user_id, str) and user_id:
            self.user_ids += 1
            self.emails += _EMAIL.fullmatch(user_id) is not None
        if event.event_type in self._types or len(self._types) < MOST_NAMES:
            self._types[event.event_type] += 1
        _note(self._of_events, event.event_properties, event.event_type)
        for name, inner in event.user_properties.items():
            is_operation = name.startswith("$") and isinstance(inner, dict)
            _note(self._of_users, inner if is_operation else {name: inner}, event.event_type)

    @property
    def types(self) -> list[tuple[str, int]]:
        """The event types that can be sent, most frequent first, with their counts."""
        fit = [(name, n) for name, n in self._types.most_common() if _is_sendable(name)]
        return fit[:MAX_EVENT_TYPES]

    def event_properties(self, types: Sequence[str]) -> list[Property]:
        """Return the properties of these event types that can be sent, most frequent first."""
        wanted = set(types)
        return [p for p in _fit(self._of_events) if p.types & wanted]

    @property
    def user_properties(self) -> list[Property]:
        """The properties of users that can be written, most frequent first."""
        return [p for p in _fit(self._of_users) if p.name not in _INTERCOMS_OWN]

    @property
    def identifier(self) -> str:
        """How contacts are found: by ``email`` where user ids are such, else ``external_id``."""
        is_email = self.user_ids and self.emails >= self.user_ids * EMAIL_SHARE
        return "email" if is_email else "external_id"


def is_of_sdk(name: str) -> bool:
    """Whether an SDK sends this event type by itself: it is proposed, and not marked."""
    return name.startswith("[") or name in ("session_start", "session_end", "revenue_amount")


def _is_sendable(name: str) -> bool:
    is_loop = name.startswith("[Intercom] ")
    return not (name.startswith("$") or is_loop or is_blank(name) or name in ANY_TYPE)


def _note(found: dict[str, Property], properties: Mapping[str, Any], event_type: str) -> None:
    for name, value in properties.items():
        if value is None or (name not in found and len(found) >= MOST_NAMES):
            continue
        seen = found.setdefault(name, Property(name))
        seen.count += 1
        seen.types.add(event_type)
        seen.is_fit = seen.is_fit and is_fit(name, value)
        seen.kind = seen.kind or _kind(value)
        if seen.is_fit and not seen.example:
            seen.example = shown(value, EXAMPLE_CHARACTERS)


def _fit(found: Mapping[str, Property]) -> list[Property]:
    fit = [seen for seen in found.values() if seen.is_fit]
    return sorted(fit, key=lambda seen: -seen.count)


def is_fit(name: str, value: object) -> bool:
    """Whether a property may be proposed: one value, a name that is taken, no secret."""
    if isinstance(value, dict | list) or not is_legal_key(name) or name.startswith(("user.", "$")):
        return False
    if {word.lower() for word in _WORD.findall(name)} & _SECRET_WORDS:
        return False
    return not (isinstance(value, str) and _SECRET_VALUE.fullmatch(value.strip()))


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "yes/no"
    return "number" if isinstance(value, int | float) else "text"


# --- picking ------------------------------------------------------------------------------


def picked(text: str, names: Sequence[str], marked: Sequence[str]) -> list[str]:
    """Return the names that an answer means.

    The answer is empty (the marked ones), ``all``, ``none``, or a list, separated by commas, of
    numbers, spans of numbers (``2-5``) and names; a name need not be among those that are listed.

    Raises:
        ValueError: a number stands for nothing.
    """
    text = text.strip()
    if not text:
        return list(marked)
    if text.lower() in ("all", "none"):
        return list(names) if text.lower() == "all" else []
    chosen: dict[str, None] = {}
    for part in _parts(text, names):
        span = re.fullmatch(r"([0-9]+)(?:\s*-\s*([0-9]+))?", part)
        if part in names or not span:
            chosen[part] = None
            continue
        ends = [number.lstrip("0")[:MOST_DIGITS] for number in (span[1], span[2] or span[1])]
        first, last = (int(end or "0") for end in ends)
        if not 1 <= first <= last <= len(names):
            raise ValueError(f"{shown(part, 40)}: expected numbers from 1 to {len(names)}")
        chosen.update(dict.fromkeys(names[first - 1 : last]))
    return list(chosen)


def _parts(text: str, names: Sequence[str]) -> list[str]:
    """Return the parts of a list; numbers may have blanks between them, names have them inside."""
    if text in names:
        return [text]
    if re.fullmatch(r"[0-9\s,-]+", text):
        return re.sub(r"\s*-\s*", "-", text).replace(",", " ").split()
    return [part.strip() for part in text.split(",") if part.strip()]
