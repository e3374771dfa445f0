"""``check --probe``: consent, a probe of each access token, and the facts kept of it.

The first signal ends the questions: the test contacts are archived, and those that are left are
printed. The second one ends the archiving too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio

from amplitude_intercom.engine.clients import Token, client_of, token_key, token_of
from amplitude_intercom.engine.commands import probe_answers as words
from amplitude_intercom.engine.commands.probe import EVENT_NAME, Probe
from amplitude_intercom.engine.commands.probe_calls import DOMAIN, PREFIX
from amplitude_intercom.engine.commands.running import Signals
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import DataDirInUse, SettingsError, SpoolError
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES, Settings, Sync
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.sqlite.snapshots import look
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME
from amplitude_intercom.engine.spool.store import Store, reading_store
from amplitude_intercom.engine.token_facts import AFTER, BEFORE, workspace_of
from amplitude_intercom.transports.intercom import Wire
from amplitude_intercom.transports.reasons import RefusalReason


class Consent(NamedTuple):
    """The consent to a probe. ``given``: without a question; ``events``: events may be sent."""

    given: bool = False
    events: bool = True


class Probed(NamedTuple):
    """The result of probes: findings by name of the sync, and the signal that ended them, or 0."""

    findings: dict[str, list[Finding]]
    signal: int


def tokens_of(syncs: Sequence[Sync]) -> list[Sync]:
    """Return the first sync of each access token and address."""
    firsts: dict[tuple[str, str], Sync] = {}
    for sync in syncs:
        firsts.setdefault(token_of(sync), sync)
    return list(firsts.values())


# --- consent ------------------------------------------------------------------------------


def has_consent(settings: Settings, consent: Consent) -> bool:
    """Announce the test contacts and events of a probe, and ask for consent.

    Raises:
        SettingsError: there is no terminal to ask on, and the consent is not given.
    """
    if consent.given:
        return True
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SettingsError(
            "--probe asks on a terminal before it makes test contacts, and there is none: give"
            " --yes as well"
        )
    for line in _announcement(settings, consent):
        say(line, stderr=True)
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _announcement(settings: Settings, consent: Consent) -> list[str]:
    syncs = tokens_of(settings.sync)
    where = ", ".join(f"{sync.name} ({token_of(sync)[0]})" for sync in syncs)
    lines = [
        f"--probe makes, in the workspace of {where}:",
        f"- two to four contacts, {PREFIX}…, with an e-mail at {DOMAIN}, unsubscribed from e-mails",
    ]
    if consent.events:
        lines.append(
            f"- three events `{EVENT_NAME}` of the first of them, one of them an hour ahead. Their"
            f" name takes one of the workspace's {MAX_EVENT_TYPES}, the same one for every probe,"
            " and can be archived in Intercom; --no-events sends none"
        )
    return [
        *lines,
        "It archives the contacts at the end, also after Ctrl-C. It takes up to a minute, and some"
        " forty calls of the access token's rate limit. What the workspace does by itself with new"
        " users (messages, workflows, webhooks) it may do with these.",
    ]


# --- probing ------------------------------------------------------------------------------


async def probe_all(settings: Settings, syncs: Sequence[Sync], consent: Consent) -> Probed:
    """Probe with the access token of each of these syncs; keep the facts that the engine uses."""
    signals = Signals()
    found: dict[str, list[Finding]] = {}
    counting: dict[tuple[str, str], bool] = {}
    for sync in syncs:
        if signals.stop.is_set():
            break
        full = consent.events and _has_no_name_free(settings, sync)
        async with client_of(sync.intercom) as client:
            events = consent.events and not full
            probe = await probe_one(client, signals.stop, signals.now, events=events)
        found[sync.name] = [*([_names_are_full()] if full else []), *probe.findings]
        if probe.counts_before is not None:
            counting[token_of(sync)] = probe.counts_before
    if counting:
        kept = await _keep(settings, counting)
        for sync in syncs:
            if token_of(sync) in counting:
                found[sync.name].append(kept)
    return Probed(found, signals.first)


async def probe_one(
    wire: Wire,
    stop: asyncio.Event,
    now: asyncio.Event,
    *,
    events: bool = True,
    now_s: Callable[[], float] = time.time,
) -> Probe:
    """Probe with one access token until ``stop`` is set; archive its contacts until ``now`` is.

    Contacts that are left after an early end are printed to stderr, because the findings may not be
    printed then. Cancelled, it archives first.
    """
    probe = Probe(wire, now_s)
    done = False
    try:
        done = await _until(stop, lambda: probe.run(events=events))
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_say_archiving, stop)
                await _until(now, probe.calls.clean_up)
                tasks.cancel_scope.cancel()
        if not done or stop.is_set():
            _say_left(list(probe.calls.left))
    return probe


async def _say_archiving(stop: asyncio.Event) -> None:
    await stop.wait()
    say("archiving the test contacts; Ctrl-C again leaves them", stderr=True)


def _say_left(left: Sequence[Finding]) -> None:
    for finding in left:
        say(f"{finding.level}: {finding.text}", stderr=True)
    if not left:
        say("all of them are archived", stderr=True)


async def _until(event: asyncio.Event, work: Callable[[], Awaitable[None]]) -> bool:
    """Do something until it is done or an event is set; return whether it is done."""
    done = False
    async with anyio.create_task_group() as tasks:

        async def give_up() -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(give_up)
        await work()
        done = True
        tasks.cancel_scope.cancel()
    return done


# --- the spool ----------------------------------------------------------------------------


def _names_are_full() -> Finding:
    text = f"events were not tried: all {MAX_EVENT_TYPES} event names of the workspace are in use"
    return Finding("fact", words.SAME_EVENT, text)


def _has_no_name_free(settings: Settings, sync: Sync) -> bool:
    """Return whether the spool knows that a probe's event would have no name left."""
    path = Path(settings.data_dir) / FILE_NAME

    def names(store: Store) -> set[str]:
        return set(store.event_names.of(workspace_of(store, sync)))

    try:
        used = look(path, reading_store, names)
    except SpoolError:  # none yet, or none that can be read
        return False
    return len(used) >= MAX_EVENT_TYPES and EVENT_NAME not in used


async def _keep(settings: Settings, counting: Mapping[tuple[str, str], bool]) -> Finding:
    """Keep how ``Remaining`` counts; return whether that was possible."""
    what = "how `X-RateLimit-Remaining` counts"
    try:
        await keep_counting(settings, counting)
    except DataDirInUse as error:
        why = f"{error}, which learns it from answers; or stop that and probe again"
    except SpoolError as error:
        why = error.detail or str(error)
    except SettingsError as error:
        why = str(error)
    else:
        text = f"{what} is kept in the spool: the next start begins with it"
        return Finding("fact", words.KEPT, text)
    return Finding("fact", words.KEPT, f"{what} is not kept: {why}")


async def keep_counting(settings: Settings, found: Mapping[Token, bool]) -> None:
    """Keep, by access token, whether ``Remaining`` is the value before its call is charged.

    The spool must exist; the next process that delivers begins with the kept value.

    Raises:
        DataDirInUse: another process has the spool.
        SettingsError: the data directory cannot be used.
        SpoolError: there is no spool yet, or its file cannot be opened or written.
    """
    data_dir = Path(settings.data_dir)
    path = data_dir / FILE_NAME
    if not path.exists():
        text = f"there is no spool {path} yet; the first start makes it"
        raise SpoolError(RefusalReason.SPOOL_FAILING, text)

    def work(store: Store) -> None:
        for token, counts_before in found.items():
            store.meta.set(token_key("remaining", token), BEFORE if counts_before else AFTER)

    with DataDir(data_dir):
        spool = Spool(data_dir, settings)
        try:
            await spool.do(work)
        finally:
            await spool.close()
