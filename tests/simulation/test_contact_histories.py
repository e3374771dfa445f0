"""Random histories of contact updates, judged against an independent model.

Each seed draws users, syncs and settings, and then what happens in some minutes: identifies and
events, lost answers, kills, and others who write, archive, delete, merge and take away contacts.
At the end everything is settled, and every contact must hold what ``support.contact_model`` says.
In a calm history nothing goes wrong, so there the calls are counted, too.

Not judged, because the rules leave it open:

- A user whose contact was deleted, or who lives twice after a merge: all fields (``_is_open``).
- After a merge, a take-over, or a contact that others made while ours was on its way: a field,
  until an update sets it to something new (``contact_model.moved``).
- After an archiving: a list, until it is set anew (``contact_model.read_again``).
- An update that is a dead letter though its write may be done (``contact_model.perhaps``).
- ``$set`` and ``$unset`` of a time between the last one and an operation that counts.
- A property that is selected later while updates of it wait, or after others wrote it on a contact
  that we made.
- All e-mail addresses where the workspace is strict about them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.sandbox.contacts import Contact
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.journal import JournalEntry
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.contact_history import CONTESTED, EMAIL, FOREIGN, SELECTABLE, STANDARD, History, Plan
from support.contact_model import UNSURE, Properties, Update, as_field, same
from support.contact_records import Happened, Records, Sent
from support.virtual import in_virtual_time

FOUND: Final[Sequence[int]] = ()
"""Seeds of histories that once broke a law."""
IN_CI: Final = range(300)
MANY: Final = range(300, 3_000)
A_TEST: Final = 20
"""Seeds that one test goes through."""

FIRST_S: Final = 1_700_000_000
DAY_S: Final = 86_400.0
ATTEMPTS: Final = 30
WINDOW_S: Final = 900.0
"""For retries: longer than any fault, and short, for a simulated hour takes its time."""
EVERY: Final = DeadLetterQuery(every=True)


class Play:
    """One history on its way."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.folder = folder
        self.processes = 0
        self.lives = 0
        """Copies of the disk."""
        self.waiting: set[str] = set()
        """Syncs that had something on its way when the last process ended."""
        self.status: list[SyncStatus] = []

    # --- the processes ----------------------------------------------------------------------

    async def run(self) -> None:
        history = self.history
        self.locals = [self._sandbox(n) for n in range(history.workspaces)]
        self.records = Records(history, self.locals)
        for workspace in range(history.workspaces):
            self._populate(workspace)
        acts = sorted(self._acts(), key=lambda act: act[0])
        for end_s in history.ends:
            await self._live(acts, end_s)
            self.records.choose(waiting=self.waiting)
        await self._live(acts, None)

    def _sandbox(self, workspace: int) -> Sandbox:
        history = self.history
        return simulation.sandbox(
            seed=history.seed + workspace,
            latency_s=history.latency_s,
            faults=history.faults,
            strict_email=history.is_strict,
            workspace_id=f"workspace-{workspace}",
            open_attributes=history.missing is None,
            attributes=history.attributes() if history.missing is not None else {},
        )

    def _acts(self) -> Iterator[tuple[float, Callable[[Engine], Awaitable[None]]]]:
        history = self.history
        yield from ((at_s, self._submit) for at_s in history.arrivals)
        yield from ((at_s, self._replay) for at_s in history.replays)
        for times, act in (
            (history.scribbles, self._scribble),
            (history.upsets, self._upset),
            (history.appearances, self._appear),
        ):
            yield from ((at_s, partial(_at_once, act)) for at_s in times)

    async def _live(self, acts: list[Any], end_s: float | None) -> None:
        """Run one process: until it ends or is killed, or until everything is settled."""
        loop = virtual.current()
        async with Engine(
            self._settings(),
            wire=lambda to: InProcess(self.locals[_workspace_of(to.access_token.reveal())]),
            now_ms=loop.wall_ms,
            now_s=loop.wall_s,
            jitter=random.Random(self.history.seed).random,
            inline=True,
        ) as engine:
            until_s = self.history.seconds if end_s is None else end_s
            while acts and acts[0][0] < until_s:
                at_s, act = acts.pop(0)
                await _until(at_s)
                await act(engine)
            await _until(until_s)
            if end_s is None:
                await self._settle(engine)
            else:
                await self._end(engine)

    async def _end(self, engine: Engine) -> None:
        """End a process; one that is killed leaves what is on disk at this instant."""
        self.processes += 1
        self.waiting = {sync.name for sync in (await engine.status()).syncs if sync.pending}
        if self.history.is_killed:
            before = self.folder / f"life-{self.lives}"
            shutil.copytree(before, self.folder / f"life-{self.lives + 1}")
            engine.cancel()
            self.lives += 1

    async def _settle(self, engine: Engine) -> None:
        """Let all faults end and everything settle, the dead letters once more."""
        for local in self.locals:
            local.faults.clear()
        with anyio.fail_after(3 * DAY_S):
            await engine.settled()
            await self._replay(engine)
            await engine.settled()
        for plan in self.history.plans:
            for letter in await self._letters(engine, plan):
                self.records.note_dead(letter)
        self.status = list((await engine.status()).syncs)

    def _settings(self) -> Settings:
        return from_table(
            {
                "data_dir": str(self.folder / f"life-{self.lives}"),
                "sync": [self._table(plan) for plan in self.history.plans],
            }
        )

    def _table(self, plan: Plan) -> dict[str, Any]:
        users: dict[str, Any] = {"properties": plan.selected, "trigger": plan.trigger}
        users["archived"] = plan.archived
        if not plan.newer_wins:
            users["newer_wins"] = False
        token = self.processes if self.history.rotates else 0
        return {
            "name": plan.name,
            "amplitude_api_keys": [simulation.API_KEY],
            "intercom": {"access_token": f"token-{plan.workspace}-{token}"},
            "mapping": {"identifier": self.history.identifier},
            "users": users,
            "events": {
                "select": [{"types": ["*"]}],
                "metadata": ["n"],
                "unknown_user": plan.unknown_user,
            },
            "delivery": {"retry_attempts": ATTEMPTS, "retry_window_s": WINDOW_S},
        }

    # --- what is sent -----------------------------------------------------------------------

    async def _submit(self, engine: Engine) -> None:
        history, n = self.history, len(self.records.sent)
        plan, user = history.dice.choice(history.plans), history.dice.choice(history.users)
        sent, event = self._draw(plan, user, n)
        before = self.records.properties(plan, user) if history.is_calm else {}
        local = self.locals[plan.workspace]
        known, first = self.records.is_known(plan, user), len(local.journal)
        self.records.add(sent)
        await engine.submit([event], sync=plan.name)
        if history.is_calm:
            await engine.settled()
            calls = local.journal[first:]
            self.records.made |= {
                (call.contact_id, plan.name) for call in calls if call.outcome == "created"
            }
            self._check_calls(sent, before, calls, known=known)

    def _draw(self, plan: Plan, user: str, n: int) -> tuple[Sent, dict[str, Any]]:
        history, dice = self.history, self.history.dice
        identifies = dice.random() < history.identifies
        payload = history.payload(plan, n, user) if identifies or dice.random() < 0.5 else {}
        poison = dice.choice(("/events", "/contacts")) if dice.random() < history.poison else ""
        if poison == "/events" and identifies:
            poison = ""
        if poison == "/contacts":
            payload.setdefault("$set", {})["plan"] = f"poison-{n}"
        if poison:
            contains = f'"n":{n}}}' if poison == "/events" else f'"poison-{n}"'
            for local in self.locals:
                local.faults.insert(0, Fault("status", 422, path=poison, contains=contains))
        back = 0 if history.is_in_order else dice.choice((0, 0, 0, 1, 5, 20))
        time_s = FIRST_S + 1_000 * (n - back) + n
        kind = simulation.identify(user, n, payload)
        event = kind if identifies else simulation.event(user, n, user_properties=payload)
        says = payload if identifies or plan.trigger == "any_update" else {}
        newer_wins = plan.newer_wins and plan.trigger == "any_update"
        update = Update(says, tuple(plan.selected), time_s, newer_wins)
        calls = len(self.locals[plan.workspace].journal)
        sent = Sent(n, calls, plan, user, update, not identifies, poison)
        return sent, event | {"time": time_s * 1_000}

    async def _replay(self, engine: Engine) -> None:
        """Send the dead letters again, behind all that was accepted until now."""
        for plan in self.history.plans:
            letters = await self._letters(engine, plan)
            self.records.replay(letters)
            if letters:
                ids = [letter.id for letter in letters]
                await engine.upkeep.replay(plan.name, DeadLetterQuery(ids=ids))

    async def _letters(self, engine: Engine, plan: Plan) -> list[Any]:
        return await engine.upkeep.dead_letters(plan.name, EVERY)

    # --- what others do ---------------------------------------------------------------------

    def _populate(self, workspace: int) -> None:
        history = self.history
        for user in history.users:
            if history.dice.random() < history.there_before:
                self._add(workspace, user)
        if history.is_strict and history.identifier == "external_id":
            shared, nameless = CONTESTED
            self._add(workspace, None, email=shared, external_id="somebody")
            self._add(workspace, None, email=nameless)

    def _add(self, workspace: int, user: str | None, **fields: Any) -> str:
        """Let others make a contact, with values of its own."""
        history = self.history
        who = {history.identifier: user} if user else {}
        contact_id = self.locals[workspace].add_contact(**{**who, **fields})
        names = [name for name in SELECTABLE if name != EMAIL and history.has(name)]
        for name in history.dice.sample(names, history.dice.choice((0, 2, 4))):
            self._write(workspace, contact_id, name, user or "")
        for name in fields.keys() & {EMAIL}:
            self.records.others[workspace, contact_id][name] = fields[name]
        return contact_id

    def _write(self, workspace: int, contact_id: str, name: str, user: str) -> None:
        """Let others write a field."""
        history = self.history
        value = history.field(name, user, history.dice.randrange(1_000, 2_000))
        fields = {name: value} if name in STANDARD else {"custom_attributes": {name: value}}
        self.locals[workspace].change_contact(contact_id, **fields)
        self.records.others[workspace, contact_id][name] = value

    def _scribble(self) -> None:
        """Let others write what is not selected; anything, as long as we have not come."""
        dice = self.history.dice
        workspace, user = dice.randrange(self.history.workspaces), dice.choice(self.history.users)
        contact = self.records.contact_of(workspace, user)
        if contact is None or contact.state == "merged":
            return
        selected = {n for plan in self.history.plans_of(workspace) for n in plan.selected}
        later = {plan.later for plan in self.history.plans_of(workspace)} - {""}
        names = {*FOREIGN, *(later if not self.records.is_ours(workspace, contact) else ())}
        if not any(s.user == user and s.plan.workspace == workspace for s in self.records.sent):
            names |= selected & {*SELECTABLE} - {EMAIL}
        name = dice.choice(sorted(filter(self.history.has, names)))
        self._write(workspace, contact.id, name, user)

    def _appear(self) -> None:
        """Let others make a contact for a user who has none."""
        dice = self.history.dice
        workspace, user = dice.randrange(self.history.workspaces), dice.choice(self.history.users)
        if self.records.contact_of(workspace, user) is None:
            contact_id = self._add(workspace, user)
            self._note("appeared", workspace, user, contact_id)

    def _upset(self) -> None:
        """Let others archive, delete, merge or take away a contact."""
        dice = self.history.dice
        workspace, user = dice.randrange(self.history.workspaces), dice.choice(self.history.users)
        contact = self.records.contact_of(workspace, user)
        what = dice.choice(("archived", "archived", "deleted", "merged", "merged", "taken"))
        if contact is None or contact.state != "live":
            return
        local, n = self.locals[workspace], len(self.records.log)
        if what == "archived":
            local.archive(contact.id)
        elif what == "deleted":
            local.delete(contact.id)
        elif what == "merged":
            who = dice.choice((None, f"heir-{n}"))
            local.merge(contact.id, self._add(workspace, None, external_id=who))
        else:
            whose = "taken@example.com" if self.history.identifier == EMAIL else f"taken-{n}"
            local.change_contact(contact.id, **dict[str, Any]({self.history.identifier: whose}))
        self._note(what, workspace, user, contact.id)

    def _note(self, what: str, workspace: int, user: str, contact_id: str) -> None:
        at_s = virtual.current().wall_s()
        self.records.log.append(Happened(what, workspace, user, contact_id, at_s))

    # --- calls ------------------------------------------------------------------------------

    def _check_calls(
        self, sent: Sent, before: Properties, calls: list[JournalEntry], *, known: bool
    ) -> None:
        """Law 5, for one update or event by itself in a calm history."""
        contacts = [call for call in calls if call.path.startswith("/contacts")]
        most = self.records.most_calls(sent, before, known=known)
        what = f"#{sent.n} of {sent.user} in {sent.plan.name}, {sent.update.payload}"
        made = [f"{call.method} {call.path} {call.status}" for call in contacts]
        assert len(contacts) <= most, f"{what}: expected {most} calls for the contact, found {made}"
        if sent.is_event and known:
            events = sum(call.path == "/events" for call in calls)
            assert events == 1, f"{what}: expected one call for the event, found {events}"


async def _at_once(act: Callable[[], None], _: Engine) -> None:
    act()


async def _until(at_s: float) -> None:
    await anyio.sleep(max(0.0, at_s - virtual.current().now_s))


def _workspace_of(token: str) -> int:
    return int(token.split("-")[1])


# --- the laws -----------------------------------------------------------------------------


def check(play: Play) -> None:
    check_accounts(play)
    for plan in play.history.plans:
        for user in play.history.users:
            check_contact(play, plan, user)
            check_order(play, plan, user)
    check_others(play)
    check_taken(play)


def check_accounts(play: Play) -> None:
    for sync in play.status:
        received = sum(sent.plan.name == sync.name for sent in play.records.sent)
        assert (sync.received, sync.pending) == (received, 0), sync.name
        settled = sync.delivered + sum(sync.dropped.values()) + sync.dead
        assert settled == received, f"{sync.name}: expected {received} settled, found {settled}"


def check_contact(play: Play, plan: Plan, user: str) -> None:
    """A contact holds what its updates say, each applied once."""
    if _is_open(play, plan, user):
        return
    contact = play.records.contact_of(plan.workspace, user)
    if contact is None:
        assert not _must_exist(play, plan, user), f"{user} in {plan.name}: expected a contact"
    properties = play.records.properties(plan, user)
    for name in sorted({*plan.selected, *properties}):
        if name == EMAIL and play.history.is_strict:
            continue
        base = play.records.base(plan.workspace, user, name)
        expected = as_field(properties[name].value if name in properties else base)
        if not play.history.has(name):
            expected = None
        found = None if contact is None else field_of(contact, name)
        where = f"{user} in {plan.name}: expected {name} {expected!r}, found {found!r}"
        assert expected is UNSURE or same(expected, found), where


def _is_open(play: Play, plan: Plan, user: str) -> bool:
    """Return whether nothing can be said of a contact: it was deleted, or lives twice."""
    what = {happened.what for happened in _upsets(play, plan.workspace, user)}
    field = play.history.identifier
    contacts = play.locals[plan.workspace].contacts.values()
    lives = [each.state for each in contacts if getattr(each, field) == user]
    twice = len(lives) > 1 or lives == ["live"] or "taken" in what
    return "deleted" in what or ("merged" in what and twice)


def _upsets(play: Play, workspace: int, user: str) -> Iterator[Happened]:
    for entry in play.records.log:
        if isinstance(entry, Happened) and (entry.workspace, entry.user) == (workspace, user):
            yield entry


def _must_exist(play: Play, plan: Plan, user: str) -> bool:
    """Return whether an identify was applied, and nobody has taken the contact."""
    applied = any(
        sent.plan is plan and sent.user == user and not (sent.is_event or sent.was_dead)
        for sent in play.records.sent
    )
    return applied and not any(
        happened.what in ("taken", "merged") for happened in _upsets(play, plan.workspace, user)
    )


def field_of(contact: Contact, name: str) -> Any:
    return getattr(contact, name) if name in STANDARD else contact.custom_attributes.get(name)


def check_order(play: Play, plan: Plan, user: str) -> None:
    """Events and contact writes reach Intercom as they were accepted.

    Aside are dead letters, and the events that waited while one was answered 404: the update behind
    them goes first, and makes the contact that they need.
    """
    calls = _Calls(play.locals[plan.workspace].journal, plan.step)
    mine = [s for s in play.records.sent if s.plan is plan and s.user == user and not s.was_dead]
    steps = [sent.n for sent in mine if sent.n in calls.written]
    order: list[tuple[int, int]] = []
    known_from = -1
    for sent in mine:
        if sent.n in steps:  # with the update of a later step goes all that is before it
            order.append((min(calls.written[n] for n in steps if n >= sent.n), sent.n))
        if sent.n in calls.unknown:
            known_from = max(known_from, calls.stored.get(sent.n, calls.unknown[sent.n]))
        if sent.n in calls.stored and sent.calls > known_from:
            order.append((calls.stored[sent.n], sent.n))
    assert order == sorted(order), f"{user} in {plan.name}: out of order, (call, #): {order}"


class _Calls:
    """A journal, by number of what was sent."""

    def __init__(self, journal: Iterable[JournalEntry], step: str) -> None:
        self.stored: dict[int, int] = {}
        """The first time that an event was taken."""
        self.unknown: dict[int, int] = {}
        """The last time that an event was of a user whom Intercom did not know."""
        self.written: dict[int, int] = {}
        """The first time that an update was written; of those that have a step."""
        for place, entry in enumerate(journal):
            if entry.path == "/events":
                self._note_event(entry, place)
            elif entry.outcome in ("created", "updated"):
                custom = msgspec.json.decode(entry.body).get("custom_attributes") or {}
                if isinstance(custom.get(step), int):
                    self.written.setdefault(custom[step], place)

    def _note_event(self, entry: JournalEntry, place: int) -> None:
        n = msgspec.json.decode(entry.body)["metadata"]["n"]
        if entry.outcome in ("stored", "duplicate"):
            self.stored.setdefault(n, place)
        elif entry.outcome == "not_found":
            self.unknown[n] = place


def check_others(play: Play) -> None:
    """What others wrote and no sync selects is as they left it; so is somebody's contact."""
    for (workspace, contact_id), fields in play.records.others.items():
        contact = play.locals[workspace].contacts[contact_id]
        selected = {n for plan in play.history.plans_of(workspace) for n in plan.selected}
        is_somebody = contact.external_id == "somebody"
        for name, value in fields.items():
            found = field_of(contact, name)
            if is_somebody or name not in selected:
                what = f"{contact.external_id or contact.email}: expected {name} of others"
                assert same(found, value), f"{what} {value!r}, found {found!r}"


def check_taken(play: Play) -> None:
    """A contact that was taken away is written once more at most by each sync; retries aside."""
    killed = len(play.history.ends) if play.history.is_killed else 0
    for entry in play.records.log:
        if isinstance(entry, Happened) and entry.what == "taken" and not _was_merged(play, entry):
            bodies = _written_after(play.locals[entry.workspace], entry)
            most = len(play.history.plans_of(entry.workspace)) + killed
            what = f"{entry.user}: expected {most} writes of a contact that was taken away"
            assert len(bodies) <= most, f"{what}, found {bodies}"


def _was_merged(play: Play, taken: Happened) -> bool:
    """Return whether a user's contact was merged into one that was given to somebody else before
    anybody could see whose it was."""
    return any(
        isinstance(entry, Happened)
        and entry.what == "merged"
        and (entry.workspace, entry.user) == (taken.workspace, taken.user)
        for entry in play.records.log
    )


def _written_after(local: Sandbox, taken: Happened) -> Collection[bytes]:
    path = f"/contacts/{taken.contact_id}"
    return {
        entry.body
        for entry in local.journal
        if (entry.path, entry.outcome) == (path, "updated")
        and entry.status == 200
        and entry.at_s > taken.at_s
    }


# --- the tests ----------------------------------------------------------------------------


@in_virtual_time
async def failure_of(seed: int, folder: Path) -> str:
    """Return how a history broke a law, or nothing."""
    play = Play(History(seed), folder)
    try:
        await play.run()
        check(play)
    except AssertionError as failure:
        return f"seed {seed}: {str(failure).partition(chr(10))[0]}"
    except Exception as fault:
        fault.add_note(f"seed {seed}")
        raise
    return ""


def _parameters() -> list[Any]:
    in_ci = [IN_CI[start : start + A_TEST] for start in range(0, len(IN_CI), A_TEST)]
    many = [MANY[start : start + A_TEST] for start in range(0, len(MANY), A_TEST)]
    named = [range(seed, seed + 1) for seed in FOUND]
    return [
        *(pytest.param(seeds, id=f"{seeds[0]}-{seeds[-1]}") for seeds in [*in_ci, *named]),
        *(
            pytest.param(seeds, id=f"{seeds[0]}-{seeds[-1]}", marks=pytest.mark.long)
            for seeds in many
        ),
    ]


@pytest.mark.parametrize("seeds", _parameters())
def test_every_contact_is_as_its_updates_say(seeds: Sequence[int], tmp_path: Path) -> None:
    failures = [failure_of(seed, tmp_path / str(seed)) for seed in seeds]
    assert not any(failures), "\n".join(filter(None, failures))
