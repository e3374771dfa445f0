"""The number of calls to Intercom, beside the guaranteed number, counted by hand.

An event takes one call, a changed contact one if it is known and at most two if it is not, an
unchanged contact none. The Intercom is in this process.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from benchmarks import events
from benchmarks.feeding import SUBMIT
from benchmarks.report import Result, result

KNOWN_SHARE = 0.3
"""The share of users that the workspace has at the start."""

CALLS_OF_A_START = 2
"""``/me``, for the workspace's id, and the list of attributes."""


def number_of_calls(seed: int, *, smoke: bool) -> list[Result]:
    """Count the calls for a day of 10,000 users, in bursts of identifies and events.

    Each burst is settled before the next, so that two changes of a user never merge into one.
    """
    users, bursts = (300, 4) if smoke else (10_000, 6)
    dice = random.Random(seed)
    local = Sandbox(open_attributes=True, seed=seed, limit_per_minute=50_000_000)
    known = {user for user in range(users) if dice.random() < KNOWN_SHARE}
    for user in known:
        local.add_contact(external_id=f"user-{user:08}")
    plans: dict[int, str] = {}
    counted = CALLS_OF_A_START
    identifies = sent = 0

    async def scenario(folder: Path) -> None:
        nonlocal counted, identifies, sent
        settings = events.settings(folder)
        async with Engine(settings, wire=lambda _: InProcess(local)) as engine:
            number = 0
            for _ in range(bursts):
                burst: list[dict[str, Any]] = []
                for user in range(users):
                    if user not in plans or dice.random() < 0.5:
                        plan = dice.choice(events.PLANS)
                        repeats = dice.randrange(1, 4)
                        identifies += repeats
                        if user not in plans:
                            counted += 2 if user in known else 1
                        elif plans[user] != plan:
                            counted += 1
                        plans[user] = plan
                        burst += [events.identify(user, plan, number + n) for n in range(repeats)]
                        number += repeats
                    for _ in range(dice.randrange(4)):
                        burst.append(events.purchase(user, number))
                        number += 1
                        sent += 1
                for start in range(0, len(burst), SUBMIT):
                    await engine.submit(burst[start : start + SUBMIT], sync="benchmark")
                await engine.settled()
        counted += sent

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(scenario(Path(name)))
    assert len(local.events) == sent
    naive = 2 * identifies + sent
    note = f"search, then write, would be {naive:,}"
    return [result("calls", local.calls, counted, "calls", note)]


def of_first_contacts(seed: int, *, smoke: bool) -> list[Result]:
    """Count the calls for first contacts of users, all or half of whom the workspace has.

    Users that it has have an e-mail there, and half of them the plan that is written.
    One call is due if nothing differs, two if something does, and at most two for a new user. At
    Intercom's own rate, because the first answers teach which call to make first, and calls that
    have left by then cannot use it.
    """
    users = 300 if smoke else 10_000
    dice = random.Random(seed)
    results = []
    for name, share in (("calls-there", 1.0), ("calls-half", 0.5)):
        local = Sandbox(open_attributes=True, seed=seed, limit_per_minute=10_000)
        counted = CALLS_OF_A_START
        for user in range(users):
            is_there, is_same = dice.random() < share, dice.random() < 0.5
            counted += 1 if share == 1 and is_same else 2
            if is_there:
                plan = {"plan": "pro" if is_same else "free"}
                local.add_contact(
                    external_id=f"user-{user:08}", email=_email(user), custom_attributes=plan
                )
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_identify_all(Path(folder), local, users))
        note = f"{local.calls / users:.2f} a user; search, then write, would be {2 * users:,}"
        results.append(result(name, local.calls, counted, "calls", note))
    return results


async def _identify_all(folder: Path, local: Sandbox, users: int) -> None:
    settings = events.settings(folder, users={"properties": ["plan", "email"]})
    async with Engine(settings, wire=lambda _: InProcess(local)) as engine:
        for start in range(0, users, SUBMIT):
            batch = [
                events.identify(user, "pro", user, email=_email(user))
                for user in range(start, min(users, start + SUBMIT))
            ]
            await engine.submit(batch, sync="benchmark")
        await engine.settled()


def _email(user: int) -> str:
    return f"user-{user:08}@example.com"
