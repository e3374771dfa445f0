"""``forward --export``: history from Amplitude, fetched some hours at a time and read like files.

Rules
=====
    missing hours ─► step ─► fetch ─► LineSource ─► checkpoint ─► delete ─► the next step

- A step is at most ``step_hours`` long. One that is too much for Amplitude is halved, and with it
  all that follow; a single hour that is too much ends the run, for the API knows nothing shorter.
- One after the other: while a step is fetched, the events of those before it are delivered.
- A step is finished, and is not fetched again, once all of it is in the spool. The export that is
  read at a kill stays on disk, and is read on at its line.
- An hour that Amplitude may still add to, or of which a file is damaged, is delivered, and not
  finished: the next run fetches it again, and what was delivered is known by its insert ids.
- Hours without events are finished only where the project has shown events once: with the wrong
  address every hour is empty.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread

from amplitude_intercom.engine.addresses import normal_url
from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.commands.deliverer import Deliverer
from amplitude_intercom.engine.commands.finished_hours import FinishedHours
from amplitude_intercom.engine.commands.forward_reading import Ending, MakeSource, Reading
from amplitude_intercom.engine.commands.running import FAILED, USAGE
from amplitude_intercom.engine.commands.terminal import count, say
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Export, Settings
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.transports import finding
from amplitude_intercom.transports.amplitude_exports import (
    BASE_URLS,
    ExportClient,
    ExportDelayed,
    ExportTooLarge,
    KeysRefused,
    Span,
    last_whole_hour,
    show_hour,
)
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.errors import TransportError

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
"""Between two questions while Amplitude does not answer."""

SAY_AGAIN_S: Final = 60.0
"""Between two lines that say so."""


class Asked(NamedTuple):
    """The hours that somebody wants; ``again``: those too that are finished."""

    span: Span
    again: bool = False


def export_settings(settings: Settings) -> Export:
    """Return the settings of exports.

    Raises:
        SettingsError: there are none.
    """
    if settings.export is None:
        raise SettingsError(
            "--export: there is no [export] in the settings; put into it `api_key` and"
            ' `secret_key` of the Amplitude project, as "env:NAME" or "file:PATH", and'
            ' `region = "eu"` where its data is kept in the EU'
        )
    return settings.export


def _base_url(export: Export) -> str:
    return normal_url(export.base_url or BASE_URLS[export.region])


def _digest(export: Export) -> str:
    """Return a digest of the project: finished hours are kept for each."""
    text = f"{_base_url(export)} {export.api_key.reveal()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ExportInput:
    """Hours of an Amplitude project, as something that ``forward`` reads."""

    def __init__(
        self,
        settings: Settings,
        asked: Asked,
        deliverer: Deliverer,
        make_source: MakeSource,
        reading: Reading,
        *,
        selected: str = "",
        max_wait_s: float | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``selected`` tells apart runs that take different events of an hour. No export within
        ``max_wait_s`` ends reading."""
        self._export = export_settings(settings)
        self._asked = asked
        self._deliverer = deliverer
        self._make_source = make_source
        self._reading = reading
        self._max_wait_s = max_wait_s
        self._now_s = now_s
        digest = _digest(self._export)
        self._name = f"export {digest} {selected}".strip()
        self._folder = Path(settings.data_dir, "export", f"{deliverer.sync}-{digest}")
        self._step_hours = self._export.step_hours
        self._finished = FinishedHours()
        self._unsure: list[Span] = []
        """Hours that are done, of a project that has shown no events yet."""

        self._left: Span | None = None
        """What an interrupted run has fetched, and not read to its end."""

        self._files = 0
        self._hours = {"asked": asked.span.hours, "fetched": 0, "empty": 0, "skipped": 0}
        self._late = 0

    def counts(self) -> dict[str, Any]:
        """Return the number of exports that were read, and of hours by their ending."""
        return {"files": self._files, "hours": self._hours}

    async def read(self, intake: Intake) -> Ending | None:
        """Fetch and read the missing hours; return once they are on disk, or the reason to end.

        Raises:
            OSError: an export cannot be written or read.
            DataDirInUse: another process fetches exports into the same folder.
        """
        ending = None
        with DataDir(self._folder.parent):
            missing = await self._missing()
            if missing:
                async with self._client() as client:
                    ending = await self._read_all(client, missing, intake)
                self._reading.begin("delivering what is fetched", None)
        if ending is None:
            await self._deliverer.include_earlier()  # an interrupted run may have read the rest
            if missing:
                self._say_what_is_not_finished()
        return ending

    def _client(self) -> ExportClient:
        export = self._export
        return ExportClient(
            _base_url(export),
            export.api_key.reveal(),
            export.secret_key.reveal(),
            timeout_s=export.timeout_s,
            max_bytes=export.max_bytes,
            now_s=self._now_s,
        )

    # --- before and after -----------------------------------------------------------------

    async def _missing(self) -> list[Span]:
        """Return the hours to fetch; make the folder hold the export that is read on, at most."""
        span, again = self._asked
        checkpoints = await self._deliverer.checkpoints()
        self._finished = FinishedHours.read(checkpoints.get(self._name, ""))
        if again:
            self._finished = self._finished.without(span)
        missing = self._finished.missing(span)
        self._hours["skipped"] = span.hours - sum(some.hours for some in missing)
        if self._hours["skipped"]:
            text = f"{count(self._hours['skipped'], 'hour')} of {span.hours:,} fetched before"
            say(f"{text}; --again fetches them anew", stderr=True)
        kept = await anyio.to_thread.run_sync(self._clean, missing)
        self._left = Span.read(kept.stem) if kept else None
        gone = _sources_within(self._folder, checkpoints, kept)
        await self._deliverer.forget_checkpoints(gone, {self._name: str(self._finished)})
        return missing

    def _clean(self, missing: Sequence[Span]) -> Path | None:
        """Delete the files of earlier runs except the export that this one goes on with; blocks."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = None
        for path in self._folder.iterdir():
            if path.suffix == ".zip" and not self._asked.again and _is_next(path, missing):
                kept = path
            else:
                path.unlink(missing_ok=True)
        return kept

    def _say_what_is_not_finished(self) -> None:
        if self._late:
            text = "may lack events: Amplitude's export is complete about two hours late"
            say(f"the last {count(self._late, 'hour')} {text}; run it again then", stderr=True)
        if self._unsure:
            text = "is [export] of the right project, and of its region?"
            say(f"none of these hours has events; {text}", stderr=True)

    # --- step by step ---------------------------------------------------------------------

    async def _read_all(
        self, client: ExportClient, missing: Sequence[Span], intake: Intake
    ) -> Ending | None:
        spans = deque(missing)
        while spans:
            span = spans.popleft()
            left, self._left = self._left, None
            step = left or self._step_of(span)
            is_whole = bool(left) or step.whole_at_s <= self._now_s()
            try:
                has_events = bool(left) or await self._fetch(client, step)
            except ExportTooLarge as error:
                if step.hours == 1:
                    return _too_large(step, error)
                self._step_hours = step.hours // 2
                spans.appendleft(span)
                continue
            except KeysRefused as error:
                return _refused(error)
            except ExportDelayed as error:
                return _not_answered(step, error)
            await self._finish(step, intake, has_events=has_events, is_whole=is_whole)
            if step.last < span.last:
                spans.appendleft(Span(step.last + 1, span.last))
        return None

    def _step_of(self, span: Span) -> Span:
        """Return the hours to ask for next: all can be exported whole, or none."""
        last = min(span.last, span.first + self._step_hours - 1)
        whole = last_whole_hour(self._now_s())
        return Span(span.first, whole if span.first <= whole < last else last)

    def _path(self, step: Span) -> Path:
        return self._folder / f"{step}.zip"

    async def _fetch(self, client: ExportClient, step: Span) -> bool:
        """Fetch a step, however often that is tried; return False where it has no events."""
        patience = Patience(step, self._max_wait_s)
        while True:
            self._reading.begin(f"fetching {self._shown(step)}", None)
            try:
                return await client.fetch(step, self._path(step), self._reading.read)
            except ExportTooLarge as error:
                if step.hours > 1 or not error.can_pass:
                    raise
                await patience.wait(error)
            except ExportDelayed as error:
                await patience.wait(error, error.retry_after_s)

    async def _finish(
        self, step: Span, intake: Intake, *, has_events: bool, is_whole: bool
    ) -> None:
        """Read a fetched export, and keep that its hours are done."""
        self._hours["fetched" if has_events else "empty"] += step.hours
        self._late += 0 if is_whole else step.hours
        if has_events:
            await self._keep_finished([])  # a kill while it is read must not lose the empty hours
        path, problems = self._path(step), self._reading.problems
        source_names = await self._deliver(step, path, intake) if has_events else []
        if is_whole and self._reading.problems == problems:
            self._unsure.append(step)
        await self._keep_finished(source_names)
        await anyio.to_thread.run_sync(lambda: path.unlink(missing_ok=True))

    async def _keep_finished(self, source_names: Sequence[str]) -> None:
        """Keep which hours are done, in place of the checkpoints of a file that is read."""
        if self._hours["fetched"] or self._finished.spans:
            for done in self._unsure:
                self._finished = self._finished.with_(done)
            self._unsure.clear()
        await self._deliverer.forget_checkpoints(source_names, {self._name: str(self._finished)})

    async def _deliver(self, step: Span, path: Path, intake: Intake) -> Sequence[str]:
        """Read an export; return the names of its checkpoints."""
        self._files += 1
        self._reading.begin(f"forward {self._shown(step)}", finding.size([str(path)]))
        source = self._make_source([str(path)], await self._deliverer.checkpoints())
        await source.run(intake)
        return source.files

    def _shown(self, step: Span) -> str:
        span = self._asked.span
        return f"{show_hour(step.first)} (hour {step.first - span.first + 1} of {span.hours})"


def _sources_within(folder: Path, checkpoints: Mapping[str, str], kept: Path | None) -> list[str]:
    """Return the checkpoints of exports that are gone."""
    inside = f"{finding.shown(str(folder.absolute()))}/"
    still = f"{finding.shown(str(kept.absolute()))} " if kept else "\0"
    return [name for name in checkpoints if name.startswith(inside) and not name.startswith(still)]


def _is_next(path: Path, missing: Sequence[Span]) -> bool:
    """Whether a file holds the first of the missing hours, and they were whole when it was asked
    for; blocks."""
    try:
        step = Span.read(path.stem)
    except ValueError:
        return False
    is_first = bool(missing) and step.first == missing[0].first and step.last <= missing[0].last
    return is_first and step.whole_at_s <= path.stat().st_mtime


# --- when there is no export --------------------------------------------------------------


class Patience:
    """Pauses between questions that are not answered; prints now and then that it waits."""

    def __init__(self, step: Span, most_s: float | None) -> None:
        self._step = step
        self._most_s = most_s
        self._failures = 0
        self._since_s = self._say_at_s = anyio.current_time()

    async def wait(self, why: TransportError, asked_s: float | None = None) -> None:
        """Wait until it is time to ask again, at least ``asked_s``.

        Raises:
            ExportDelayed: that would be too long.
        """
        self._failures += 1
        now_s = anyio.current_time()
        jitter = random.random()  # noqa: S311 - spreads questions, hides nothing
        wait_s = max(
            asked_s or 0.0, probe_delay_s(self._failures, FIRST_WAIT_S, LONGEST_WAIT_S, jitter)
        )
        if self._most_s is not None and now_s + wait_s > self._since_s + self._most_s:
            raise ExportDelayed(str(why))
        if now_s >= self._say_at_s:
            self._say_at_s = now_s + SAY_AGAIN_S
            text = "it is asked again; --max-wait ends this"
            say(f"{show_hour(self._step.first)}: no export yet: {why}; {text}", stderr=True)
        await anyio.sleep(wait_s)


def _too_large(step: Span, error: ExportTooLarge) -> Ending:
    hour = show_hour(step.first)
    return Ending(
        f"{hour}: this hour is too much for one export ({error}), and the API has nothing shorter;"
        f" what was before it is kept. Fetch what is behind it with --export"
        f" {show_hour(step.last + 1)} END, and this hour with Amplitude's export to S3",
        FAILED,
    )


def _refused(error: KeysRefused) -> Ending:
    return Ending(
        f"Amplitude refuses export.api_key and export.secret_key ({error}): both have to be those"
        " of one project, and export.region the region of its data",
        USAGE,
    )


def _not_answered(step: Span, error: ExportDelayed) -> Ending:
    return Ending(f"{show_hour(step.first)}: no export within --max-wait: {error}", FAILED)
