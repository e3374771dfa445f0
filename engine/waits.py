"""Waits until nothing is pending any more, through changes of settings.

During a change a sync has no delivery and a relay no sender, whatever waits in them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from amplitude_intercom.engine.delivery.stream import SyncDelivery
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.running_takers import RunningTakers
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

Changed = Callable[[], Awaitable[None]]
"""Waits until no change of settings is under way."""


async def until_settled(
    takers: RunningTakers, changed: Changed, has_ended: Callable[[], bool]
) -> None:
    """Wait until nothing is pending in any sync that delivers.

    Raises:
        Refused: the engine ended before that.
    """
    await changed()
    while (delivery := _unsettled(takers)) is not None:
        if has_ended():
            raise Refused(RefusalReason.DRAINING)
        await delivery.feed.progress()
        await changed()


async def until_relayed(takers: RunningTakers, changed: Changed) -> None:
    """Wait until no request waits for Amplitude.

    Raises:
        Refused: the engine drains before that.
    """
    await changed()
    while (sender := _unrelayed(takers)) is not None:
        if takers.is_draining:
            raise Refused(RefusalReason.DRAINING)
        await sender.settled()
        await changed()


def _unsettled(takers: RunningTakers) -> SyncDelivery | None:
    deliveries = (stream.delivery for stream in takers.streams.values())
    pending = (found for found in deliveries if found and found.spool.counters["pending"])
    return next(pending, None)


def _unrelayed(takers: RunningTakers) -> RelaySender | None:
    senders = (running.sender for running in takers.relays.values())
    return next((sender for sender in senders if sender.spool.counters["pending"]), None)
