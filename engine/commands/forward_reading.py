"""Reading for ``forward``: what is read, how far it is, and its problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from amplitude_intercom.engine.commands.deliverer import Deliverer
from amplitude_intercom.engine.commands.running import FAILED, complain
from amplitude_intercom.engine.commands.terminal import count, say
from amplitude_intercom.transports import files, finding
from amplitude_intercom.transports.contract import Intake, Receipt
from amplitude_intercom.transports.errors import BadFile
from amplitude_intercom.transports.line_source import LineSource
from amplitude_intercom.transports.progress import Progress

MAX_PROBLEMS = 100
"""Files, or members of archives, that are named as bad; of more, their number is said."""


class Ending(NamedTuple):
    """Why reading ended before its end, and the exit code for that."""

    why: str
    code: int


class Input(Protocol):
    """Something that is read to its end, and resumed where it was interrupted."""

    async def read(self, intake: Intake) -> Ending | None:
        """Read the rest; return when it is on disk, or with the reason for ending early."""
        ...

    def counts(self) -> dict[str, Any]:
        """Return the counts of a report that are not about events."""
        ...


MakeSource = Callable[[Sequence[str], Mapping[str, str]], LineSource]
"""Makes the source that reads some files, with the checkpoints that are kept."""


class FilesInput:
    """Files, folders and pipes that somebody has named."""

    def __init__(
        self,
        paths: Sequence[str],
        deliverer: Deliverer,
        make_source: MakeSource,
        reading: Reading,
        *,
        max_wait_s: float | None = None,
    ) -> None:
        """``max_wait_s``: how long may be waited for events that were kept before."""
        self._paths = paths
        self._reading = reading
        self._deliverer = deliverer
        self._make_source = make_source
        self._max_wait_s = max_wait_s

    async def read(self, intake: Intake) -> Ending | None:
        """Read all of them. To its end, they are read anew the next time."""
        self._reading.begin("forward", finding.size(self._paths))
        checkpoints = await self._deliverer.checkpoints()
        source = self._make_source(self._paths, checkpoints)
        await source.run(intake)
        await self._deliverer.forget_checkpoints(source.files)
        if any(file in checkpoints for file in source.files):
            await self._deliverer.include_earlier()  # an interrupted run has read the rest
            return None
        return self._reading.end(self._deliverer, self._max_wait_s)

    def counts(self) -> dict[str, Any]:
        """Nothing more than how many they are."""
        return {"files": len(self._paths)}


class _Waiting(ProgressColumn):
    """How many events wait for Intercom, at the moment of looking."""

    def __init__(self, deliverer: Deliverer) -> None:
        super().__init__()
        self._deliverer = deliverer

    def render(self, task: Task) -> Text:
        return Text(f"{self._deliverer.pending:,} waiting")


class Problems:
    """The problems of files: each bad file is named, the others are read."""

    def __init__(self) -> None:
        self.count = 0
        self._texts: list[str] = []

    def add(self, error: BadFile) -> None:
        """Print a problem at once, because reading and delivering may take hours."""
        self.count += 1
        if len(self._texts) < MAX_PROBLEMS:
            self._texts.append(str(error))
            complain(error, FAILED)

    def unreadable(self, error: OSError) -> None:
        """Note that a file cannot be read."""
        self.add(files.bad_file(str(error.filename or ""), "", error.strerror or str(error)))

    @property
    def more(self) -> str:
        """Say how many were not named; empty where all were."""
        more = self.count - len(self._texts)
        return f"and {more} more like these" if more else ""

    def texts(self) -> list[str]:
        """Return all problems as texts."""
        return [*self._texts, *filter(None, [self.more])]


class Reading(Progress):
    """The progress of reading: a bar by bytes on a terminal, counts, and problems."""

    def __init__(self, deliverer: Deliverer, problems: Problems) -> None:
        self.skipped = 0
        self._has_stored = False
        self._has_accepted = False
        self._problems = problems
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            _Waiting(deliverer),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("forward", total=None)

    def begin(self, what: str, total_bytes: int | None) -> None:
        """Show from its beginning how something is read; None: nobody knows how long it is."""
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total_bytes)

    def __enter__(self) -> Reading:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    @property
    def problems(self) -> int:
        """How many files, or members of archives, were bad so far."""
        return self._problems.count

    def read(self, count: int) -> None:
        """So many more bytes of the files were read."""
        self._bar.update(self._task, advance=count)

    def stored(self, receipt: Receipt) -> None:
        """A batch is on disk, or counted where nothing of it is kept."""
        self._has_stored = True
        self._has_accepted |= receipt.accepted > 0

    def end(self, deliverer: Deliverer, max_wait_s: float | None) -> Ending | None:
        """Say it if no event was accepted; then end the run where only events from before wait.

        A wrong file would else seem to be delivered for hours. With ``max_wait_s`` somebody asks
        for the wait.
        """
        if self._has_accepted:
            return None
        nothing = self._nothing
        pending = deliverer.kept_before
        if not pending or max_wait_s is not None:
            say(nothing, stderr=True)
            return None
        text = "`run`, or `forward --max-wait SECONDS`, delivers what is kept"
        return Ending(f"{nothing}; kept from before: {count(pending, 'event')}; {text}", FAILED)

    @property
    def _nothing(self) -> str:
        """Why no event was accepted."""
        if self._has_stored:
            return "none of the events that were read was accepted"
        return "no event of that time was read" if self.skipped else "no event was read"

    def passed_over(self, count: int) -> None:
        """So many events are of a time that was not asked for."""
        self.skipped += count

    def bad_file(self, error: BadFile) -> None:
        """A file is not whole, or holds no events: the next one is read."""
        self._problems.add(error)

    def unreadable(self, error: OSError) -> None:
        """A file cannot be read: the next one is."""
        self._problems.unreadable(error)
