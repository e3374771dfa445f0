"""What a random history of contacts draws: users, syncs, settings, troubles and payloads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.settings import Users
from amplitude_intercom.transports.sandbox.faults import Fault
from support.contact_model import as_field

TEXTS: Final = ("plan", "name", "phone")
NUMBERS: Final = ("visits", "score")
LISTS: Final = ("tags", "groups")
FLAGS: Final = ("active",)
EMAIL: Final = "email"
SELECTABLE: Final = (*TEXTS, *NUMBERS, *LISTS, *FLAGS, EMAIL)
STANDARD: Final = frozenset({"name", "phone", EMAIL})
FOREIGN: Final = ("note", "theirs")
"""Attributes that no sync selects."""

SETTING: Final = ("$set", "$set", "$setOnce", "$unset", "plain")
COUNTING: Final = ("$add", "$add", "$add", "$set", "$setOnce", "$unset", "plain")
LISTING: Final = (
    "$append $append $prepend $preInsert $postInsert $remove $set $setOnce $unset plain".split()
)

CONTESTED: Final = ("shared@example.com", "nameless@example.com")
"""Addresses of contacts that are there before: of somebody else, and of one without an id."""

LOSING: Final = ("hang", "reset", "half")


class Plan(msgspec.Struct):
    """A sync, as a seed draws it; ``later`` is selected from the second process on."""

    name: str
    workspace: int
    step: str
    selected: list[str]
    later: str
    unknown_user: str
    archived: str
    trigger: str
    newer_wins: bool


class History:
    """What one seed draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = self.dice = random.Random(seed)
        mood = dice.random()
        self.is_calm = mood < 0.3
        self.is_rough = mood > 0.7
        """Whether answers are lost and processes end all the time, amid operations that count."""
        self.seconds = dice.uniform(30, 300)
        self.latency_s: Any = 1.0 if self.is_rough else dice.choice((0.02, 0.3, (0.05, 0.6)))
        self.identifier = dice.choice(("external_id", "external_id", "email"))
        self.users = [
            self._user(n) for n in range(dice.choice((1, 2) if self.is_rough else (1, 2, 4, 12)))
        ]
        self.workspaces = 1
        self.plans = self._plans()
        self.is_in_order = dice.random() < 0.5
        self.submissions = dice.choice((5, 15, 30) if self.is_calm else (10, 30, 60))
        self.identifies = dice.choice((0.3, 0.6, 0.9))
        self.is_strict = not self.is_calm and dice.random() < 0.2
        self.missing = self._missing()
        self.there_before = 0.8 if self.is_rough else dice.choice((0.0, 0.3, 0.7))
        self.rotates = dice.random() < 0.2
        """Whether each process has another access token to the same workspace."""
        self.faults = self._faults()
        self.poison = 0.0 if self.is_calm else dice.choice((0.0, 0.0, 0.05))
        self.scribbles = self._times(() if self.is_calm else (0, 5, 20))
        is_safe = self.is_calm or self.is_rough
        self.upsets = self._times(() if is_safe else (0, 0, 1, 3, 6))
        self.appearances = self._times(() if self.is_calm else (0, 0, 2))
        self.replays = self._times(() if self.is_calm else (0, 1, 2))
        self.arrivals = sorted(dice.uniform(0, self.seconds) for _ in range(self.submissions))
        self.ends = [] if self.is_calm else self._ends()
        self.is_killed = dice.random() < 0.8

    def _user(self, n: int) -> str:
        return f"user-{n:02}@example.com" if self.identifier == "email" else f"user-{n:02}"

    def _times(self, counts: Sequence[int]) -> list[float]:
        count = self.dice.choice(counts or (0,))
        return sorted(self.dice.uniform(0, self.seconds) for _ in range(count))

    def _ends(self) -> list[float]:
        """Draw when processes end: mostly while something that just came is on its way."""
        dice = self.dice
        ends = [
            dice.choice(self.arrivals) + dice.choice((0.1, 1.0, 3.0)) * dice.random()
            for _ in range(dice.choice((4, 8) if self.is_rough else (0, 0, 1, 3)))
        ]
        return sorted(min(end_s, self.seconds) for end_s in ends)

    def _plans(self) -> list[Plan]:
        dice = self.dice
        there = [name for name in SELECTABLE if (name, self.identifier) != (EMAIL, EMAIL)]
        dice.shuffle(there)
        count = dice.choice((1, 1, 2))
        if count == 2 and dice.random() < 0.5:
            self.workspaces = 2
            return [self._plan(0, 0, there), self._plan(1, 1, there)]
        # Two syncs of one workspace have no property in common: each has one writer.
        return [self._plan(n, 0, there[n::count]) for n in range(count)]

    def _plan(self, n: int, workspace: int, there: list[str]) -> Plan:
        dice = self.dice
        chosen = there[: dice.randint(2, len(there))]
        later = chosen.pop() if not self.is_calm and dice.random() < 0.3 else ""
        trigger = dice.choice(("identify", "any_update"))
        newer_wins = dice.random() < 0.8 or "newer_wins" not in Users.__struct_fields__
        return Plan(
            f"sync-{n}",
            workspace,
            f"step_{n}",
            [*chosen, f"step_{n}"],
            later,
            dice.choice(("park", "create", "drop", "dead_letter")),
            dice.choice(("unarchive", "unarchive", "dead_letter")),
            trigger,
            newer_wins,
        )

    def _missing(self) -> str | None:
        """Draw the attribute that the workspace lacks; None: it takes any attribute."""
        if self.dice.random() < 0.7:
            return None
        return self.dice.choice(("", "plan", "visits", "tags"))

    def _faults(self) -> list[Fault]:
        if self.is_calm:
            return []
        faults = [self._fault() for _ in range(self.dice.choice((0, 1, 4)))]
        if self.is_rough:
            faults.append(Fault(self.dice.choice(LOSING), share=0.3, end_s=self.seconds))
        return faults

    def _fault(self) -> Fault:
        dice = self.dice
        start_s = dice.uniform(0, self.seconds)
        return Fault(
            kind=dice.choice((*LOSING, *LOSING, "refuse", "status")),
            status=dice.choice((500, 503)),
            share=dice.choice((1.0, 0.5, 0.2)),
            start_s=start_s,
            end_s=start_s + dice.choice((5.0, 30.0, 120.0)),
            path=dice.choice(("", "/contacts", "/contacts", "/contacts", "/events")),
            contains=dice.choice(("", "", "", dice.choice(self.users))),
            done=dice.random() < 0.8,
        )

    @property
    def loses_answers(self) -> bool:
        """Whether a call can be done without our learning of it."""
        lost = any(fault.kind in LOSING and fault.done for fault in self.faults)
        return lost or bool(self.ends and self.is_killed)

    def plans_of(self, workspace: int) -> list[Plan]:
        return [plan for plan in self.plans if plan.workspace == workspace]

    # --- values -----------------------------------------------------------------------------

    def payload(self, plan: Plan, n: int, user: str) -> dict[str, Any]:
        """Draw user properties: operations on properties, most of which the sync selects."""
        dice = self.dice
        names = [*plan.selected[:-1], *filter(None, [plan.later]), dice.choice(FOREIGN)]
        if self.is_rough:
            names = [name for name in names if name in (*NUMBERS, *LISTS)] or names
        payload: dict[str, Any] = {}
        for _ in range(dice.choice((1, 1, 2, 3))):
            name = dice.choice(names)
            operation = self._operation(name)
            argument = self._argument(name, operation, user, n)
            if operation == "plain":
                payload[name] = argument
            else:
                payload.setdefault(operation, {})[name] = argument
        if dice.random() < 0.03:
            payload["$clearAll"] = "-"
        if dice.random() < 0.5:
            payload.setdefault("$set", {})[plan.step] = n
        return payload

    def _operation(self, name: str) -> str:
        if self.missing is None and name not in STANDARD and self.dice.random() < 0.05:
            return self.dice.choice((*COUNTING, *LISTING))
        kinds = {**dict.fromkeys(NUMBERS, COUNTING), **dict.fromkeys(LISTS, LISTING)}
        return self.dice.choice(kinds.get(name, SETTING))

    def _argument(self, name: str, operation: str, user: str, n: int) -> Any:
        dice = self.dice
        if operation == "$unset":
            return "-"
        if operation in ("$set", "$setOnce", "plain"):
            return None if dice.random() < 0.03 else self.value(name, user, n)
        if operation == "$add":
            return dice.choice((1, 1, 2, -3, 0.5))
        return self.value("tags", user, n) if dice.random() < 0.5 else dice.choice("abcdef")

    def value(self, name: str, user: str, n: int) -> Any:
        """Draw a value as a property has it."""
        dice = self.dice
        if name in NUMBERS:
            return dice.choice((0, 1, 5, 12.5))
        if name in LISTS:
            return [dice.choice("abcdef") for _ in range(dice.choice((1, 2)))]
        if name in FLAGS:
            return dice.random() < 0.5
        if name == EMAIL and self.is_strict and dice.random() < 0.3:
            # One user alone: of two that come at once, the second would take the nameless one away.
            return dice.choice(CONTESTED if user == self.users[0] else CONTESTED[:1])
        if name == EMAIL:
            return f"{user.partition('@')[0]}-{dice.choice((1, 2, n))}@mail.example"
        return f"{name}-{dice.choice((1, 2, n))}"

    def field(self, name: str, user: str, n: int) -> Any:
        """Draw a value as others write it into a contact."""
        return as_field(self.value(name, user, n))

    def attributes(self) -> dict[str, str]:
        """Return the attributes that a workspace has, and their types."""
        types = {
            **dict.fromkeys(("plan", *LISTS, *FOREIGN), "string"),
            **dict.fromkeys((*NUMBERS, *(plan.step for plan in self.plans)), "float"),
            **dict.fromkeys(FLAGS, "boolean"),
        }
        types.pop(self.missing or "", None)
        return types

    def has(self, name: str) -> bool:
        """Return whether a workspace has a property's field."""
        return self.missing is None or name != self.missing
