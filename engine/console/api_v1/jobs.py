"""Jobs on dead letters: asked for, looked at, cancelled.

Rules
=====
1. A job is about letters that were seen: those of a filter up to the letter ``up_to_id``, in the
   order of their last failure. Where their number is not ``expected``, nothing is done (409): the
   filter means more, or less, than was seen. What fails later is not among them, so a letter that
   comes between the count and the job is left alone.
2. An empty filter selects nothing; ``every`` has to be said.
3. A request with an ``Idempotency-Key`` that comes again within a day begins no other job.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, Protocol

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.job_values import Job, job_of
from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.pages import (
    MOST_NAMED,
    Page,
    PageQuery,
    cursor_of,
    number,
    position_of,
)
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, taker_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.requests import id_of
from amplitude_intercom.engine.console.guard import CHANGE, SENDER, RequestChange
from amplitude_intercom.engine.console.problems import Problem, ProblemType, refused_value
from amplitude_intercom.engine.errors import SelectionEnded, SettingsError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.asked_once import Once, asked_before
from amplitude_intercom.engine.spool.job_requests import Chosen, end_of_selection
from amplitude_intercom.engine.spool.jobs import JobKind, JobRow
from amplitude_intercom.engine.spool.letters import MOST, DeadLetterQuery, Id, TimeMs
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import matching_up_to

COUNTED_S: Final = 5.0
"""Seconds for which the letters of a job are counted at its request."""

MOST_KEY_CHARACTERS: Final = 255
NO_CONDITION: Final = "; without a condition it means none, `every` all"


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which dead letters: all given conditions hold. Without one none is meant, but with ``every``
    all are."""

    ids: Annotated[list[Id], msgspec.Meta(max_length=MOST_NAMED)] | None = None
    reason: DeadReason | None = None
    user: str | None = None
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None
    every: bool = False
    status: Id | None = None
    code: str | None = None
    event_type: str | None = None

    def query(self) -> DeadLetterQuery:
        """Return it as the spool takes it."""
        query = DeadLetterQuery(**msgspec.structs.asdict(self))
        return DeadLetterQuery(ids=[]) if query.is_empty else query


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request for a job. ``up_to_id``, ``expected``: as a list of the letters has said them."""

    action: Literal["replay", "discard"]
    filter: Filter
    up_to_id: Id
    expected: Annotated[int, msgspec.Meta(ge=0, le=MOST)]
    note: Annotated[str, msgspec.Meta(max_length=500)] = ""


class EngineWithJobs(RunningEngine, Protocol):
    """An engine with its jobs."""

    @property
    def jobs(self) -> JobRunner:
        """What runs the jobs."""
        ...


class JobsOfEngine:
    """Asks the job runner of one engine."""

    def __init__(self, engine: EngineWithJobs, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads
        self._counting = Reads(engine.spool, COUNTED_S)

    def operations(self) -> list[Operation]:
        """Return the operations."""
        missing, conflict = ProblemType.NOT_FOUND, ProblemType.CONFLICT
        return [
            operation("GET", "/jobs", self._list, PageQuery, Page[Job]),
            operation("GET", "/jobs/{job}", self._job, Nothing, Job, refusals=(missing,)),
            operation(
                "DELETE",
                "/jobs/{job}",
                self._cancel,
                Nothing,
                Job,
                refusals=(missing, conflict),
            ),
            operation(
                "POST",
                "/syncs/{sync}/jobs",
                self._ask,
                JobRequest,
                Job,
                status=202,
                refusals=(missing, conflict),
                takes_key=True,
                has_location=True,
            ),
        ]

    async def _list(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the jobs, the latest first."""
        list_name = query.list_name(request.path)
        below = position_of(list_name, query.cursor, number) or MOST
        jobs = await self._reads.look(lambda store: store.jobs.latest(query.limit + 1, below))
        some = jobs[: query.limit]
        next_ = cursor_of(list_name, str(some[-1].id)) if len(jobs) > len(some) else None
        return ApiAnswer(Page([job_of(row) for row in some], next_))

    async def _job(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return one job."""
        return ApiAnswer(job_of(await self._found(request)))

    async def _cancel(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Cancel a job. Its finished part stays done."""
        job = await self._found(request)
        try:
            is_cancelled = await self._engine.jobs.cancel(job.id)
        except SettingsError as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        if not is_cancelled:
            raise Problem(ProblemType.CONFLICT, f"job {job.id} has ended already")
        request[CHANGE] = RequestChange("job cancelled", f"{job.kind} {job.id} of {job.sync}")
        return ApiAnswer(job_of(await self._found(request)))

    async def _found(self, request: web.Request) -> JobRow:
        id_ = id_of(request, "job")
        job = await self._reads.look(lambda store: store.jobs.get(id_))
        if job is None:
            raise Problem(ProblemType.NOT_FOUND, f"there is no job {id_}, or it is forgotten")
        return job

    async def _ask(self, request: web.Request, asked: JobRequest) -> ApiAnswer:
        """Begin to replay or discard dead letters of a sync, or of a relay (`relay:NAME`)."""
        name, once = taker_of(self._engine, request), _once(request, asked)
        is_again = once is not None and await self._is_again(once)
        if not is_again:
            await self._refuse_other_number(name, asked)
        chosen = Chosen(asked.filter.query(), asked.up_to_id, asked.expected)
        try:
            job = await self._engine.jobs.ask_once(
                JobKind(asked.action),
                name,
                chosen,
                who=request[SENDER].who,
                why=asked.note,
                once=once,
            )
        except (SettingsError, SelectionEnded) as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        if job is None:
            raise refused_value("/Idempotency-Key", "it was sent with another request before")
        note = f": {asked.note}" if asked.note else ""
        what = f"{asked.action} {asked.expected} of {name}, job {job.id}{note}"
        request[CHANGE] = RequestChange("job asked again" if is_again else "job asked", what)
        return ApiAnswer(job_of(job), {"Location": f"{API_ROOT}/jobs/{job.id}"})

    async def _is_again(self, once: Once) -> bool:
        now_ms = self._engine.spool.now_ms()
        found = await self._reads.look(lambda store: asked_before(store.meta, once, now_ms))
        return found is not None

    async def _refuse_other_number(self, name: str, asked: JobRequest) -> None:
        query = asked.filter.query()

        def count(store: Store) -> int:
            taker = store.takers.known_id(name)
            end = end_of_selection(store, taker, asked.up_to_id)
            return matching_up_to(store, taker, query, end)

        try:
            found = await self._counting.look(count)
        except SelectionEnded as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        if found != asked.expected:
            hint = NO_CONDITION if asked.filter == Filter() else ""
            raise Problem(
                ProblemType.CONFLICT,
                f"up to letter {asked.up_to_id} the filter means {found} and not"
                f" {asked.expected}, as was expected{hint}",
                more={"count": found},
            )


def _once(request: web.Request, asked: JobRequest) -> Once | None:
    """Return the key of a request with its content; None: it has none.

    Raises:
        Problem: the key is too long, or there are several.
    """
    given = request.headers.getall("Idempotency-Key", ())
    if not given:
        return None
    if len(given) > 1 or not 1 <= len(given[0]) <= MOST_KEY_CHARACTERS:
        detail = f"Idempotency-Key: expected one, of 1 to {MOST_KEY_CHARACTERS} characters"
        raise Problem(ProblemType.BAD_REQUEST, detail)
    key = f"{request.path}\n{given[0]}".encode(errors="surrogateescape")
    return Once(_digest(key), _digest(msgspec.json.encode(asked)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
