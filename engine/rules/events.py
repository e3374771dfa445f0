"""An Amplitude event as an Intercom event: name, second and metadata.

- An Intercom event has ``event_name``, ``created_at`` in Unix seconds, and either ``user_id`` (the
  contact's ``external_id``) or ``email`` (API description 2.16, ``POST /events``).
- Intercom ignores metadata keys beyond its limit, in the order sent (API description 2.16). So the
  order of the selection is the priority.
- Metadata keys that differ only in case are one key (help article 175).

``rules.metadata_values`` fits the value of a property, ``rules.money`` a price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from amplitude_intercom.engine.envelope import Adjusted, Adjustment, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason
from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.bodies import MOST_THAT_FIT, cut_to_size
from amplitude_intercom.engine.rules.dates import DATE_ENDING
from amplitude_intercom.engine.rules.fitting import Style, is_plain
from amplitude_intercom.engine.rules.metadata_values import Spread, spread
from amplitude_intercom.engine.rules.money import is_exact, money
from amplitude_intercom.engine.rules.texts import fit_key, fit_name, is_blank
from amplitude_intercom.engine.rules.verdicts import Reject
from amplitude_intercom.engine.settings import Events, Rename, source_and_target
from amplitude_intercom.transports.amplitude_events import Content


class MetadataSource(NamedTuple):
    """A selected metadata property, and the key that it fills."""

    name: str
    key: str
    simple: bool
    """Whether the value is the event property ``name``, if the event has one."""
    alone: bool
    """Whether there is no other value, except from flattened keys."""
    dated: bool
    """Whether the value is a date."""
    path: paths.Path
    currency: paths.Path | None
    """The path of the currency; None if the value is no price."""


class EventRules:
    """``[sync.events]``, compiled."""

    def __init__(self, events: Events, style: Style) -> None:
        self._rename = events.rename
        self._style = style
        self._metadata = [_metadata_source(item, events.money) for item in events.metadata]
        self._limit = events.metadata_limit
        self._max_ahead_s, self._max_age_s = events.max_ahead_s, events.max_age_s
        keys = {source.key.lower() for source in self._metadata}
        self._all_fit = len(keys) == len(self._metadata) <= self._limit
        """Whether keys cannot collide or exceed the limit, unless an object is flattened."""

    @property
    def needed(self) -> set[str]:
        """The top-level fields that these rules read of an event."""
        keys: set[str] = set()
        for source in self._metadata:
            keys.add(source.path.field)
            keys.update(paths.top_level_keys(source.currency) if source.currency else ())
        return keys - {""}

    def name_of(self, event_type: str) -> tuple[str, Sequence[Adjustment]]:
        """Return the Intercom name of an event type, empty if it would be blank."""
        wanted = self._rename.get(event_type, event_type)
        if is_blank(wanted):
            return "", ()
        name = fit_name(wanted)
        if name == wanted:
            return name, ()
        what = f"sent as {name!r}"
        return name, (Adjustment(AdjustmentReason.NAME_CLEANED, "event_name", what),)

    def created_at(
        self, event: Content, accepted_at_ms: int
    ) -> tuple[int, Sequence[Adjustment]] | Reject:
        """Return the Unix second of an event: its own time, or the acceptance if that is ahead.

        The bound is the moment of acceptance and not of sending, so that a retry is identical.
        """
        accepted_s, time_ms = accepted_at_ms // 1000, event.time_ms
        if time_ms is None:
            return accepted_s, ()
        adjustments: Sequence[Adjustment] = ()
        if time_ms is not event.time and event.time_was_guessed:
            what = "not in milliseconds"
            adjustments = (Adjustment(AdjustmentReason.TIME_UNIT, "created_at", what),)
        second: int = time_ms // 1000
        if second > accepted_s + self._max_ahead_s:
            what = f"{second - accepted_s} s ahead, the moment of acceptance instead"
            ahead = Adjustment(AdjustmentReason.TIME_AHEAD, "created_at", what)
            return accepted_s, (*adjustments, ahead)
        if second < 0 or second < accepted_s - self._max_age_s:
            age = f"{accepted_s - second} s before it was accepted"
            limit = f"sync.events.max_age_s is {self._max_age_s:.0f}"
            return Reject(DeadReason.TOO_OLD, f"{age}; {limit}")
        return second, adjustments

    def fields(self, name: str, event: Content, identity: Identity, created_at: int) -> Adjusted:
        """Return the body of ``POST /events`` as fields, and the adjustments."""
        body: dict[str, Any] = {
            "event_name": name,
            "created_at": created_at,
            "user_id" if identity.field == "external_id" else "email": identity.value,
        }
        metadata, adjustments = self.metadata(event)
        if metadata:
            body["metadata"] = metadata
            if len(metadata) > MOST_THAT_FIT:
                adjustments = [*adjustments, *cut_to_size(body, metadata)]
        return body, adjustments

    def metadata(self, event: Content) -> Adjusted:
        """Return an event's metadata, and the adjustments."""
        metadata: dict[str, Any] = {}
        # Most values need no change and no check of their key: they skip `_CheckedMetadata`.
        checked = None if self._all_fit else _CheckedMetadata(metadata, self._limit)
        style, properties = self._style, event.event_properties
        get, flat = properties.get, None
        for name, key, simple, alone, dated, path, currency in self._metadata:
            value = get(name) if simple else None
            if value is None:
                if alone:
                    if flat is None:
                        flat = "." in "".join(properties)
                    if not flat:
                        continue
                value = _value(event, path)
                if value is None:
                    continue
                if currency is not None:
                    checked = checked or _CheckedMetadata(metadata, self._limit)
                    value = checked.amount(event, key, currency, value)
            is_plain_value = not dated and is_plain(value, style)
            if is_plain_value and checked is None:
                metadata[key] = value
                continue
            checked = checked or _CheckedMetadata(metadata, self._limit)
            checked.put(
                [(key, value, None)] if is_plain_value else spread(key, value, style, dated)
            )
        return metadata, () if checked is None else checked.adjustments


class _CheckedMetadata:
    """Metadata with a check of its keys: no two alike, and no more than the limit."""

    def __init__(self, metadata: dict[str, Any], limit: int) -> None:
        self._metadata = metadata
        self._limit = limit
        self._taken = set(map(str.lower, metadata))
        self.adjustments: list[Adjustment] = []

    def put(self, found: Spread) -> None:
        """Add the keys of one property, except collisions and keys beyond the limit."""
        for key, value, note in found:
            if note is not None:
                self._adjusted(note.reason, key, note.what)
            if value is None:
                continue
            folded = key.lower()
            if folded in self._taken:
                what = "left out, equal to another key but for case"
                self._adjusted(AdjustmentReason.KEY_COLLISION, key, what)
            elif len(self._metadata) >= self._limit:
                what = f"left out, {len(self._metadata)} keys are there"
                self._adjusted(AdjustmentReason.TOO_MANY_KEYS, key, what)
                break  # one note is enough: an object can have many keys
            else:
                self._taken.add(folded)
                self._metadata[key] = value

    def amount(
        self, event: Content, key: str, currency: paths.Path, value: Any
    ) -> dict[str, Any] | Any:
        """Return a price as an amount in minor units; the value itself without a valid currency."""
        amount = money(value, paths.read(currency, event.fields))
        if amount is None:
            what = f"no amount in the currency that `{currency.name}` says, sent as it is"
            self._adjusted(AdjustmentReason.NOT_MONEY, key, what)
            return value
        if not is_exact(value, amount):
            what = f"rounded to {amount['amount']} of the minor unit"
            self._adjusted(AdjustmentReason.AMOUNT_ROUNDED, key, what)
        return amount

    def _adjusted(self, reason: AdjustmentReason, key: str, what: str) -> None:
        self.adjustments.append(Adjustment(reason, f"metadata.{key}", what))


def _value(event: Content, path: paths.Path) -> Any:
    """Return an event's value at a path; None if it has none."""
    scope, name, field = path
    if scope == "event":
        value = paths.find(event.event_properties, name)
    else:
        value = paths.find(paths.user_properties(event.user_properties), name)
    return event.fields.get(field) if value is None and field else value


def _metadata_source(item: str | Rename, currencies: Mapping[str, str]) -> MetadataSource:
    written, target = source_and_target(item)
    path = paths.parse(written, "event")
    key = fit_key(target)
    dated = key.endswith(DATE_ENDING) or (isinstance(item, Rename) and item.as_ == "date")
    named = currencies.get(path.name) if path.scope == "event" else None
    currency = None if named is None else paths.parse(f"event.{named}")
    simple = path.scope == "event" and currency is None
    alone = simple and not path.field and "." not in path.name
    return MetadataSource(path.name, key, simple, alone, dated, path, currency)
