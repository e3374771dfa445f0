"""Which properties a sync brings to contacts, and since when. Pure, but for where it is kept.

Operations on a property that is not selected are not applied. So what is known of one holds no
longer once it was left out: selected again, it is read of the contact before it is counted on.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from amplitude_intercom.engine.spool.rows import Held, Known
from amplitude_intercom.engine.spool.store import Store


class Selection(msgspec.Struct, frozen=True):
    """The ``number`` of a selection of properties, counted from 1 with each that is another than
    the one before; ``since``: for each of them, the number of the first that has had it until now.
    """

    number: int = 0
    since: dict[str, int] = {}

    def followed_by(self, names: Collection[str]) -> Selection:
        """Return the selection of these names that comes after this one."""
        if self.number and self.since.keys() == set(names):
            return self
        number = self.number + 1
        return Selection(number, {name: self.since.get(name, number) for name in sorted(names)})

    def properties_of(self, known: Known, taker: str) -> dict[str, Held]:
        """Return a taker's properties that have been selected since they were kept."""
        kept_in = known.selections.get(taker, 0)
        return {
            name: held
            for name, held in known.properties.get(taker, {}).items()
            if 0 < self.since.get(name, 0) <= kept_in
        }


def follow_selection(store: Store, taker: int, names: Collection[str], now_ms: int) -> Selection:
    """Keep what a sync selects from now on; return it."""
    key = f"selection {taker}"
    text = store.meta.get(key)
    try:
        before = msgspec.json.decode(text, type=Selection) if text else Selection()
    except msgspec.MsgspecError:  # damaged: every property is read again
        before = Selection(number=now_ms)
    selection = before.followed_by(names)
    if selection != before:
        store.meta.set(key, msgspec.json.encode(selection).decode())
    return selection
