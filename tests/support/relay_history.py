"""Seeded histories of a relay: requests, faults, kills and repairs at random, in virtual time.

What is accepted is written down here; at the end each event is at Amplitude, a dead letter, or
counted as dropped, and the first arrivals of each device are in the order of acceptance.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.sandbox.faults import Fault
from support import relaying
from support.relaying import RELAY, request, take_in
from support.spools import recount

Kinds = tuple[Literal["status", "html", "hang", "reset", "half"], ...]
KINDS: Kinds = (
    "status",
    "html",
    "hang",
    "reset",
    "half",
)


class Killed(Exception):
    """The engine's process ends here, without a word."""


class History:
    """One history; ``run`` it in virtual time, then ``check``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._dice = random.Random(seed)
        self._number = 0
        self.accepted: list[tuple[str, str, str]] = []
        """Key, device, insert id of each event that was accepted, in order."""
        self.replayed: set[tuple[str, str]] = set()
        """Events that were dead letters: they go behind what waits, so they prove no order."""
        self.counters: Counter[str] = Counter()
        self.letters: list[DeadLetter] = []

    async def run(self) -> None:
        dice = self._dice
        self.local = relaying.amplitude(
            seed=self._seed,
            latency_s=dice.choice([0.0, 0.05, 2.0]),
            events_per_s={"/2/httpapi": dice.choice([0.0, 0.0, 5.0])},
            projects={"good": "s", "late": "s"} if dice.random() < 0.5 else None,
        )
        for life in range(dice.randint(1, 5)):
            try:
                async with self._engine(life) as engine:
                    await self._live(engine)
                    if dice.random() < 0.5:
                        raise Killed
            except Killed:
                pass
        self._mend()
        async with self._engine(0) as engine:
            with anyio.fail_after(8 * 3_600):
                await engine.relayed()
            self.counters = engine.relays[RELAY].spool.counters
            self.letters = await engine.upkeep.dead_letters(RELAY, DeadLetterQuery(), limit=100_000)
            taker = engine.relays[RELAY].spool.taker
            counted = await engine.spool.do(lambda store: recount(store, taker))
            assert counted == {name: self.counters[name] for name in ("pending", "dead")}

    def _engine(self, seed: int) -> AbstractAsyncContextManager[Engine]:
        return relaying.engine(self._folder, self.local, seed=seed, amplitude_api_keys=["*"])

    def _mend(self) -> None:
        self.local.faults.clear()
        self.local.silenced.clear()

    async def _live(self, engine: Engine) -> None:
        for _ in range(self._dice.randint(1, 25)):
            await self._step(engine)

    async def _step(self, engine: Engine) -> None:
        dice = self._dice
        step = dice.random()
        if step < 0.6:
            await self._upload(engine)
        elif step < 0.75:
            await anyio.sleep(dice.choice([0.01, 0.5, 5.0, 60.0, 900.0]))
        elif step < 0.9:
            self._break()
        elif step < 0.95:
            self._mend()
        else:
            letters = await engine.upkeep.dead_letters(RELAY, DeadLetterQuery())
            self.replayed.update(map(event_in, letters))
            await engine.upkeep.replay(
                RELAY, DeadLetterQuery(ids=[letter.id for letter in letters])
            )

    async def _upload(self, engine: Engine) -> None:
        dice = self._dice
        key = dice.choice(["good", "good", "late", "bad"])
        events = []
        for _ in range(dice.choice([1, 1, 3, 20])):
            self._number += 1
            device = f"d{dice.randrange(6)}"
            kind = "poison" if dice.random() < 0.02 else "Purchase"
            events.append(relaying.event(device, self._number, event_type=kind))
        try:
            await take_in(engine, request(events, key=key))
        except Refused:
            return
        self.accepted += [(key, e["device_id"], e["insert_id"]) for e in events]

    def _break(self) -> None:
        dice = self._dice
        fault = dice.random()
        if fault < 0.2:
            self.local.silenced.add(f"d{dice.randrange(6)}")
        elif fault < 0.4:
            self.local.faults.append(Fault(kind="html", status=403, contains="poison"))
        elif fault < 0.5:
            self.local.faults.append(Fault(kind="status", status=413, share=0.5))
        else:
            kind = dice.choice(KINDS)
            done = dice.random() < 0.5
            share = dice.choice([0.3, 0.7, 1.0])
            self.local.faults.append(Fault(kind=kind, status=503, share=share, done=done))

    # --- what must hold -------------------------------------------------------------------

    def check(self) -> None:
        counters = self.counters
        settled = sum(n for name, n in counters.items() if name.startswith("dropped:"))
        assert counters["pending"] == 0
        assert counters["received"] == len(self.accepted)
        assert counters["received"] == counters["delivered"] + settled + counters["dead"]
        self._check_sets()
        self._check_order()

    def _check_sets(self) -> None:
        arrived = {(e.api_key, e.event["insert_id"]) for e in self.local.events}
        dead = {event_in(letter) for letter in self.letters}
        accepted = {(key, insert_id) for key, _, insert_id in self.accepted}
        assert arrived <= accepted
        assert accepted == arrived | dead
        assert len(self.local.events) == len(arrived)

    def _check_order(self) -> None:
        accepted: dict[tuple[str, str], list[str]] = defaultdict(list)
        arrived: dict[tuple[str, str], list[str]] = defaultdict(list)
        came = set()
        for stored in self.local.events:
            event = (stored.api_key, stored.event["insert_id"])
            came.add(event)
            if event not in self.replayed:
                arrived[stored.api_key, stored.device].append(event[1])
        for key, device, insert_id in self.accepted:
            if (key, insert_id) in came - self.replayed:
                accepted[key, device].append(insert_id)
        assert arrived == accepted


def event_in(letter: DeadLetter) -> tuple[str, str]:
    """Return key and insert id of the event in a dead letter."""
    body: dict[str, Any] = msgspec.json.decode(letter.raw)
    [event] = body["events"]
    return body["api_key"], event["insert_id"]
