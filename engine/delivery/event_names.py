"""Which event names go to a workspace: it takes 120, and no more calls are made for others.

A name counts from the first time it is sent; that is kept on disk, for names count as long as the
workspace has them. One that was not sent for 90 days is forgotten: by then somebody may have
archived it, which frees its slot (help article 5245634). Intercom's own refusal (422) teaches as
well, since others may send to the same workspace: that name is not tried again for an hour.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.settings import MAX_EVENT_TYPES

_log = structlog.get_logger(__name__)

WARN_AT: Final = 100
RECHECK_S: Final = 3600.0
DAY_MS: Final = 86_400_000
FORGOTTEN_AFTER_DAYS: Final = 90


class EventNames:
    """A workspace's event names, compared without case."""

    def __init__(
        self,
        load: Callable[[], Awaitable[dict[str, int]]],
        keep: Callable[[Mapping[str, int]], Awaitable[None]],
        now_ms: Callable[[], int],
    ) -> None:
        """``load`` and ``keep`` are for the names on disk, with the day of the last time."""
        self._load = load
        self._keep = keep
        self._now_ms = now_ms
        self._last_day: dict[str, int] | None = None
        self._refused_until_s: dict[str, float] = {}
        self._admitting = anyio.Lock()

    @property
    def count(self) -> int:
        """Names that have a slot."""
        return len(self._last_day or ())

    async def admit(self, names: Iterable[str]) -> set[str]:
        """Give new names a slot, as far as there are any; return those that have none.

        Returns when the change is on disk.
        """
        async with self._admitting:  # else the last of two syncs keeps its own names only
            return await self._admit(names)

    async def _admit(self, names: Iterable[str]) -> set[str]:
        if self._last_day is None:
            self._last_day = await self._load()
        today = self._now_ms() // DAY_MS
        days = dict(self._last_day)
        without: set[str] = set()
        for name in names:
            key = name.lower()
            if self.is_refused(name):
                continue  # its event is told so when its turn comes
            if key in days or _has_room(days, today):
                days[key] = today
            else:
                without.add(name)
        if days != self._last_day:
            await self._keep(days)
            self._warn(days)
            self._last_day = {key: day for key, day in days.items() if not self.is_refused(key)}
        return without

    def _warn(self, days: Mapping[str, int]) -> None:
        if self.count < WARN_AT <= len(days):
            _log.warning("event names become scarce", names=len(days), limit=MAX_EVENT_TYPES)

    async def forget(self, name: str) -> bool:
        """Forget a name, and that Intercom refused it; return whether it was known.

        Returns when the change is on disk. Sent again, the name takes a slot again.
        """
        async with self._admitting:
            if self._last_day is None:
                self._last_day = await self._load()
            key = name.lower()
            days = {other: day for other, day in self._last_day.items() if other != key}
            is_known = len(days) < len(self._last_day)
            if is_known:
                await self._keep(days)
                # What was refused meanwhile stays without a slot.
                self._last_day = {n: day for n, day in days.items() if not self.is_refused(n)}
            return self._refused_until_s.pop(key, None) is not None or is_known

    def refuse(self, name: str) -> None:
        """Take in that Intercom has no slot for a name: it has none here either, for an hour."""
        now_s = anyio.current_time()
        key = name.lower()
        self._refused_until_s = {k: s for k, s in self._refused_until_s.items() if s > now_s}
        self._refused_until_s[key] = now_s + RECHECK_S
        if self._last_day is not None:
            self._last_day.pop(key, None)

    def is_refused(self, name: str) -> bool:
        """Return whether Intercom refused a name within the last hour."""
        until_s = self._refused_until_s.get(name.lower())
        return until_s is not None and until_s > anyio.current_time()


def _has_room(days: dict[str, int], today: int) -> bool:
    """Return whether a name more has a slot; for that, forget those that were not sent for long."""
    if len(days) >= MAX_EVENT_TYPES:
        since = today - FORGOTTEN_AFTER_DAYS
        for name in [name for name, day in days.items() if day <= since]:
            del days[name]
    return len(days) < MAX_EVENT_TYPES
