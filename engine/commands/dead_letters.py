"""``dead-letters``: list, show, replay, discard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from datetime import UTC, datetime

import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.preview import printed
from amplitude_intercom.engine.commands.running import FAILED, OK, complain, print_json
from amplitude_intercom.engine.commands.spool_access import ReadableSpool, open_spools, read_spools
from amplitude_intercom.engine.commands.spool_files import SpoolFiles
from amplitude_intercom.engine.commands.taker_choice import choose_taker
from amplitude_intercom.engine.commands.terminal import count, listed, print_table, say
from amplitude_intercom.engine.console.api_v1.job_values import Job
from amplitude_intercom.engine.console.api_v1.letter_values import Letter, LetterFacts, LetterPage
from amplitude_intercom.engine.console.api_v1.pages import MOST_ROWS
from amplitude_intercom.engine.errors import EngineError
from amplitude_intercom.engine.previewing import Foreseen, Preview, SpooledPast, relay_replayed
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.spool.jobs import JobKind, JobState
from amplitude_intercom.engine.spool.letters import START, DeadLetter, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.engine.wording import shown


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
    letters: list[LetterFacts] = []
    matching, behind = None, None
    async with read_spools(settings) as spools:
        async for page in _pages(spools, name, query, after, limit):
            letters += page.items
            matching, behind = page.matching, page.next
    if as_json:
        print_json(letters)
    elif letters:
        head = ("id", "failed at", "reason", "status", "event type", "user", "from", "message")
        print_table(map(_row, letters), head, right=(0, 3))
    if behind:
        of = "" if matching is None else f" of {matching:,}"
        say(f"{len(letters):,}{of} shown; --after {behind} shows more", stderr=True)
    elif not letters and not as_json:
        say("no dead letters" + (f" behind {after}" if after else ""), stderr=True)
    return OK


async def _pages(
    spools: ReadableSpool,
    sync: str,
    query: DeadLetterQuery,
    cursor: str = "",
    limit: int | None = None,
) -> AsyncIterator[LetterPage]:
    """Yield the dead letters of a query, a page at a time, up to ``limit`` of them."""
    while True:
        wanted = MOST_ROWS if limit is None else min(MOST_ROWS, limit)
        page = await spools.dead_letters(sync, query, cursor, wanted)
        yield page
        if limit is not None:
            limit -= len(page.items)
        if page.next is None or limit == 0:
            return
        cursor = page.next


def _row(letter: LetterFacts) -> tuple[object, ...]:
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


async def show_dead_letter(settings: Settings, sync: str | None, id_: int, *, as_json: bool) -> int:
    """Print one dead letter, whole."""
    async with read_spools(settings) as spools:
        letter = await spools.dead_letter(choose_taker(settings, sync), id_)
    if letter is None:
        return complain(f"there is no dead letter {id_}", FAILED)
    if as_json:
        print_json(letter)
        return OK
    print_table(_fields(letter))
    if letter.payload is None:
        say("the values are hidden (admin.hide_values)", stderr=True)
        return OK
    text = letter.payload.text
    for line in text.splitlines():
        say(shown(line, len(line) * 6), most=len(line) * 6)
    if not letter.payload.is_whole:
        say(f"of {letter.payload.bytes:,} bytes; not all can be shown", stderr=True)
    return OK


def _fields(letter: Letter) -> Iterator[tuple[str, object]]:
    """Yield the fields of a dead letter except its event, in the words of the columns."""
    for name, value in msgspec.structs.asdict(letter.facts).items():
        if name.endswith("_at_ms"):
            yield name.removesuffix("_ms").replace("_", " "), _time(value)
        elif value not in (None, "") and (name, value) != ("status", 0):
            yield name.replace("_", " "), value
        if name == "reason" and letter.means:
            yield "means", letter.means
            yield "what to do", letter.remedy


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(at_ms)  # damaged


async def replay_dead_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Queue dead letters again."""

    def words(job: Job) -> str:
        return listed(sorted(job.counts.items())) or "no dead letters"

    return await _do_job(settings, sync, JobKind.REPLAY, query, words, as_json=as_json)


async def discard_dead_letters(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Settle dead letters as dropped."""

    def words(job: Job) -> str:
        return f"{count(job.done, 'dead letter')} discarded"

    return await _do_job(settings, sync, JobKind.DISCARD, query, words, as_json=as_json)


async def _do_job(
    settings: Settings,
    sync: str | None,
    kind: JobKind,
    query: DeadLetterQuery,
    words: Callable[[Job], str],
    *,
    as_json: bool,
) -> int:
    name = choose_taker(settings, sync)
    there = await _there(settings, name, query)
    async with open_spools(settings, Engine(settings, deliver=False)) as spools:
        job = whole(await spools.do_job(kind, name, query))
    if as_json:
        print_json(job)
    else:
        say(words(job))
    return _code(job.done, query, there)


def whole(job: Job) -> Job:
    """Return a job that has come to its end.

    Raises:
        EngineError: it met a fault of the program. A part may be done; its finished slices stay.
    """
    if job.state == JobState.FAILED:
        raise EngineError(f"job {job.id} met a fault of the program, which the log tells of")
    return job


def _code(found: int, query: DeadLetterQuery, there: Collection[int]) -> int:
    """Return the exit code: dead letters that are named by their ids have to be there.

    ``there``: those of the ids that were there before anything was done.
    """
    named = dict.fromkeys(query.ids or ())
    if found >= len(named):
        return OK
    absent = [str(id_) for id_ in named if id_ not in there]
    which = f" ({', '.join(absent[:MOST_ABSENT])}{', …' if absent[MOST_ABSENT:] else ''})"
    few = f"{len(named) - found:,} of {count(len(named), 'id')}{which if absent else ''}"
    return complain(f"no such dead letter: {few}", FAILED)


MOST_ABSENT = 20
"""Ids that are named as not there."""


async def _there(settings: Settings, sync: str, query: DeadLetterQuery) -> set[int]:
    """Return which of the dead letters that are named by their ids are there."""
    if not query.ids:
        return set()
    async with read_spools(settings) as spools:
        only = DeadLetterQuery(ids=query.ids)
        return {letter.id async for page in _pages(spools, sync, only) for letter in page.items}


async def foresee_replay(
    settings: Settings, sync: str | None, query: DeadLetterQuery, *, as_json: bool
) -> int:
    """Print the requests that a replay would make for each dead letter; nothing is changed.

    Read from the files: seconds that events have, and contacts that are known, are there.
    """
    name = choose_taker(settings, sync)
    if name.startswith(RELAY):
        return _foresee_relay(settings, name, query, as_json=as_json)
    [its_settings] = [sync for sync in settings.sync if sync.name == name]
    preview, files = Preview(its_settings), SpoolFiles(settings)
    promised: dict[bytes, int] = {}
    found: list[int] = []
    for letters in _whole(files, name, query):
        answers = _foresee(files, its_settings, letters, preview, promised)
        for letter, answer in zip(letters, answers, strict=True):
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


def _whole(files: SpoolFiles, name: str, query: DeadLetterQuery) -> Iterator[list[DeadLetter]]:
    """Yield the dead letters of a query with their events, a page at a time."""
    after: Position | None = START
    while after is not None:
        letters, after = files.whole_letters(name, query, after)
        yield letters


def _foresee_relay(settings: Settings, relay: str, query: DeadLetterQuery, *, as_json: bool) -> int:
    """Print the requests that a replay of a relay's dead letters would make."""
    found: list[int] = []
    for letters in _whole(SpoolFiles(settings), relay, query):
        for letter in letters:
            found.append(letter.id)
            [call] = relay_replayed(letter).requests
            body = (call.body or b"").decode(errors="replace")
            if as_json:
                said = {"method": call.method, "path": call.path, "body": body}
                print_json({"id": letter.id, **said})
            else:
                say(f"{letter.id} {call.method} {call.path} {body}", most=len(body) * 6 + 200)
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
