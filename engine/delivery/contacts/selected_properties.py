"""The properties that a sync brings to contacts, and since when each is selected.

Rules
=====
1. Operations on a property that is not selected are not applied. So its known value is void once it
   was left out: selected again, the property is read of the contact before it is counted on.
2. The same holds for all properties if users were found by another identifier meanwhile: updates of
   that time are known under the other one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from amplitude_intercom.engine.spool.contract import Transaction
from amplitude_intercom.engine.spool.known_contacts import Held, Known


class SelectedProperties(msgspec.Struct, frozen=True):
    """The ``number`` of a selection of properties, counted from 1 with each that is another than
    the one before; ``since``: for each of them, the number of the first that has had it until now.
    ``found_by``: the identifier by which users were found, and its source.
    """

    number: int = 0
    since: dict[str, int] = {}
    found_by: str = ""

    def followed_by(self, names: Collection[str], found_by: str) -> SelectedProperties:
        """Return the selection of these names that comes after this one."""
        is_the_same = found_by == self.found_by
        if is_the_same and self.number and self.since.keys() == set(names):
            return self
        number = self.number + 1
        before = self.since if is_the_same else {}
        since = {name: before.get(name, number) for name in sorted(names)}
        return SelectedProperties(number, since, found_by)

    def current(self, known: Known, taker: str, fields: Mapping[str, str]) -> Known:
        """Return what is known, but for the fields of properties that were not selected all the
        time; ``fields``: by property."""
        kept_in = known.selections.get(taker, 0)
        stale = {fields[name] for name, since in self.since.items() if since > kept_in}
        if stale.isdisjoint(known.fields):
            return known
        kept = {name: value for name, value in known.fields.items() if name not in stale}
        return msgspec.structs.replace(known, fields=kept)

    def properties_of(self, known: Known, taker: str) -> dict[str, Held]:
        """Return a taker's properties that have been selected since they were kept."""
        kept_in = known.selections.get(taker, 0)
        return {
            name: held
            for name, held in known.properties.get(taker, {}).items()
            if 0 < self.since.get(name, 0) <= kept_in
        }


def follow_selection(
    store: Transaction, taker: int, names: Collection[str], found_by: str, now_ms: int
) -> SelectedProperties:
    """Keep and return the selection of a sync from now on, with the way its users are found."""
    key = f"selection {taker}"
    text = store.meta.get(key)
    try:
        before = (
            msgspec.json.decode(text, type=SelectedProperties) if text else SelectedProperties()
        )
    except msgspec.MsgspecError:  # damaged: every property is read again
        before = SelectedProperties(number=now_ms)
    selection = before.followed_by(names, found_by)
    if selection != before:
        store.meta.set(key, msgspec.json.encode(selection).decode())
    return selection
