"""``dead-letters``: list, show, replay, discard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.preview import printed
from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.spool_access import ReadableSpool, open_spools, read_spools
from amplitude_intercom.engine.commands.spool_files import SpoolFiles
from amplitude_intercom.engine.commands.taker_choice import choose_taker
from amplitude_intercom.engine.commands.terminal import count, listed, print_table, say
from amplitude_intercom.engine.previewing import Foreseen, Preview, SpooledPast
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.relay.relayed_form import ORIGIN
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterPage, DeadLetterQuery
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.engine.wording import shown

PAGE = 1_000
"""Dead letters that are asked for at once."""


async def list_dead_letters(
    settings: Settings,
    sync: str | None,
    query: DeadLetterQuery,
    *,
    after: str,
    limit: int,
    as_json: bool,
) -> int:
    """Print dead letters, a line each, up to ``limit``; say on stderr where there are more."""
    name = choose_taker(settings, sync)
    letters: list[DeadLetter] = []
    matching, behind = 0, ""
    async with read_spools(settings) as spools:
        async for page in _pages(spools, name, query, after, limit):
            letters += page.dead_letters
            matching, behind = page.matching, page.after
    if as_json:
        print_json([view(letter) for letter in letters])
    elif letters:
        head = ("id", "failed at", "reason", "status", "event type", "user", "from", "message")
        print_table(map(_row, letters), head, right=(0, 3))
    if behind:
        text = f"{len(letters):,} of {matching:,} shown; --after {behind} shows more"
        say(text, stderr=True)
    elif not letters and not as_json:
        say("no dead letters" + (f" behind {after}" if after else ""), stderr=True)
    return OK


async def _pages(
    spools: ReadableSpool,
    sync: str,
    query: DeadLetterQuery,
    after: str = "",
    limit: int | None = None,
) -> AsyncIterator[DeadLetterPage]:
    """Yield the dead letters of a query, a page at a time, up to ``limit`` of them."""
    while True:
        wanted = PAGE if limit is None else min(PAGE, limit)
        page = await spools.dead_letters(sync, query, after, wanted)
        yield page
        if limit is not None:
            limit -= len(page.dead_letters)
        if not page.after or limit == 0:
            return
        after = page.after


def _row(letter: DeadLetter) -> tuple[object, ...]:
    where = f"{letter.origin}:{letter.line}" if letter.line else letter.origin
    return (
        letter.id,
        _time(letter.last_failed_at_ms),
        letter.reason,
        letter.status or "",
        shown(letter.event_type, 40),
        shown(letter.user_key, 40),
        where,
        shown(letter.message, 80),
    )


def view(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter for JSON, its raw event as text."""
    fields = msgspec.structs.asdict(letter)
    return {**fields, "raw": letter.raw.decode(errors="replace")}


async def show_dead_letter(settings: Settings, sync: str | None, id_: int, *, as_json: bool) -> int:
    """Print one dead letter, whole."""
    async with read_spools(settings) as spools:
        query = DeadLetterQuery(ids=[id_])
        page = await spools.dead_letters(choose_taker(settings, sync), query, "", 1)
    if not page.dead_letters:
        return complain(f"there is no dead letter {id_}", FAILED)
    [letter] = page.dead_letters
    if as_json:
        print_json(view(letter))
        return OK
    print_table(_fields(letter))
    say(shown(letter.raw.decode(errors="replace"), len(letter.raw) * 6), most=len(letter.raw) * 6)
    return OK


def _fields(letter: DeadLetter) -> Iterator[tuple[str, object]]:
    """Yield the fields of a dead letter except its event, in the words of the columns."""
    for name, value in msgspec.structs.asdict(letter).items():
        if name.endswith("_at_ms"):
            yield name.removesuffix("_ms").replace("_", " "), _time(value)
        elif name not in ("raw", "claim_id") and value not in (None, ""):
            yield name.replace("_", " "), value
        if name == "reason" and value in set(DeadReason):
            yield "means", DeadReason(value).means
            yield "what to do", DeadReason(value).remedy


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(at_ms)  # damaged


async def replay_dead_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Queue dead letters again."""
    name = choose_taker(settings, sync)
    there = await _there(settings, name, query)
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        counts = await spools.replay(name, query)
    if as_json:
        print_json(counts)
    else:
        say(listed(sorted(counts.items())) or "no dead letters")
    return _code(sum(counts.values()), query, there)


def _code(found: int, query: DeadLetterQuery, there: Collection[int]) -> int:
    """Return the exit code: dead letters that are named by their ids have to be there.

    ``there``: those of the ids that were there before anything was done.
    """
    named = dict.fromkeys(query.ids or ())
    if found >= len(named):
        return OK
    absent = [str(id_) for id_ in named if id_ not in there]
    which = f" ({', '.join(absent[:MOST_NAMED])}{', …' if absent[MOST_NAMED:] else ''})"
    few = f"{len(named) - found:,} of {count(len(named), 'id')}{which if absent else ''}"
    return complain(f"no such dead letter: {few}", FAILED)


MOST_NAMED = 20
"""Ids that are named as not there."""


async def _there(settings: Settings, sync: str, query: DeadLetterQuery) -> set[int]:
    """Return which of the dead letters that are named by their ids are there."""
    if not query.ids:
        return set()
    async with read_spools(settings) as spools:
        only = DeadLetterQuery(ids=query.ids)
        return {
            letter.id async for page in _pages(spools, sync, only) for letter in page.dead_letters
        }


async def foresee_replay(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Print the requests that a replay would make for each dead letter; nothing is changed.

    Read from the files: seconds that events have, and contacts that are known, are there.
    """
    name = choose_taker(settings, sync)
    if name.startswith(RELAY):
        return await _foresee_relay(settings, name, query, as_json=as_json)
    [its_settings] = [sync for sync in settings.sync if sync.name == name]
    preview, files = Preview(its_settings), SpoolFiles(settings)
    promised: dict[bytes, int] = {}
    found: list[int] = []
    async for page in _pages(files, name, query):
        answers = _foresee(files, its_settings, page.dead_letters, preview, promised)
        for letter, answer in zip(page.dead_letters, answers, strict=True):
            found.append(letter.id)
            if as_json:
                print_json({"id": letter.id, **printed(name, answer)})
            else:
                _print_answer(letter, answer)
    if not found and not as_json:
        say("no dead letters", stderr=True)
    return _code(len(found), query, found)


def _foresee(
    files: SpoolFiles,
    sync: Sync,
    letters: list[DeadLetter],
    preview: Preview,
    promised: dict[bytes, int],
) -> list[Foreseen]:
    """Return what a replay of each dead letter would do, as the spool stands."""

    def work(store: Store) -> list[Foreseen]:
        past = SpooledPast(store, sync, promised)
        return [preview.replayed(letter, past) for letter in letters]

    return files.look(work, [])


async def _foresee_relay(
    settings: Settings, relay: str, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Print the requests that a replay of a relay's dead letters would make."""
    found: list[int] = []
    async for page in _pages(SpoolFiles(settings), relay, query):
        for letter in page.dead_letters:
            found.append(letter.id)
            path, body = letter.origin.removeprefix(ORIGIN), letter.raw.decode(errors="replace")
            if as_json:
                print_json({"id": letter.id, "method": "POST", "path": path, "body": body})
            else:
                say(f"{letter.id} POST {path} {body}", most=len(body) * 6 + 200)
    if not found and not as_json:
        say("no dead letters", stderr=True)
    return _code(len(found), query, found)


def _print_answer(letter: DeadLetter, answer: Foreseen) -> None:
    reason = " ".join(part for part in (answer.reason, answer.message) if part)
    say(f"{letter.id} {answer.verdict}" + (f": {reason}" if reason else ""))
    for request in answer.requests:
        body = (request.body or b"null").decode()
        say(f"  {request.method} {request.path} {body}", most=len(body) * 6 + 200)
    for adjustment in answer.adjustments:
        say(f"  {adjustment}")


async def discard_dead_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Settle dead letters as dropped."""
    name = choose_taker(settings, sync)
    there = await _there(settings, name, query)
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        discarded = await spools.discard(name, query)
    if as_json:
        print_json({"discarded": discarded})
    else:
        say(f"{count(discarded, 'dead letter')} discarded")
    return _code(discarded, query, there)
