"""Options that several commands share, and the checks that turn arguments into values.

Imports are made by the function that needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from amplitude_intercom.engine.config import Written
    from amplitude_intercom.engine.settings import Settings
    from amplitude_intercom.engine.spool.letters import DeadLetterQuery
    from amplitude_intercom.transports.amplitude_exports import Span

SETTINGS_FILE = "amplitude-intercom.toml"
SETTINGS_VARIABLE = "AMPLITUDE_INTERCOM_CONFIG"


given_before: ContextVar[Path | None] = ContextVar("given_before", default=None)
"""The settings file that is given before the command, as in `-c FILE status`."""


def default_settings() -> Path:
    """Return the settings file where none is given after the command."""
    return given_before.get() or Path(os.environ.get(SETTINGS_VARIABLE) or SETTINGS_FILE)


CONFIG_HELP = f"The settings file (TOML); default: ${SETTINGS_VARIABLE}, else {SETTINGS_FILE}."
Config = Annotated[
    Path,
    typer.Option(
        "-c", "--config", default_factory=default_settings, show_default=False, help=CONFIG_HELP
    ),
]
SyncName = Annotated[str | None, typer.Option("--sync", help="Which of several syncs.")]
TakerName = Annotated[
    str | None, typer.Option("--sync", help="Which of several syncs; of a relay: `relay:NAME`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MOST = (1 << 63) - 1
"""The largest number that is an id, as ``engine.spool.letters`` has it."""

Ids = Annotated[
    list[int] | None,
    typer.Argument(min=0, max=MOST, help="Dead letters by id; none: all that match."),
]
Reason = Annotated[str | None, typer.Option(help="Only those with this reason.")]
User = Annotated[str | None, typer.Option(help="Only those of this user.")]
Since = Annotated[
    str | None, typer.Option(help="Only those that failed at this time (ISO 8601) or later.")
]
Until = Annotated[str | None, typer.Option(help="Only those that failed before this time.")]


def finish(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command in an event loop, and exit with its code."""
    from amplitude_intercom.engine.commands.running import run

    raise typer.Exit(run(main))


def finish_plainly(main: Callable[[], int]) -> NoReturn:
    """Run a command that waits for nothing, and exit with its code."""
    from amplitude_intercom.engine.commands.running import run_plainly

    raise typer.Exit(run_plainly(main))


def finite_seconds(seconds: float | None) -> float | None:
    """Refuse a number that is no time span."""
    # Written so that NaN fails too, which compares false with everything.
    if seconds is not None and not 0 <= seconds < math.inf:
        raise typer.BadParameter(f"expected seconds, 0 or more, not {seconds}")
    return seconds


def settings_at(path: Path) -> Settings:
    """Read a settings file and set logging up by it.

    Raises:
        SettingsError: there is no such file, or it is wrong.
    """
    return written_at(path).settings


def written_at(path: Path) -> Written:
    """Read a settings file as ``settings_at`` does; return its table too.

    Raises:
        SettingsError: as ``settings_at``.
    """
    from amplitude_intercom.engine.commands.running import load_settings
    from amplitude_intercom.engine.errors import SettingsError

    if str(path) == SETTINGS_FILE and not path.exists():
        raise SettingsError(
            f"{SETTINGS_FILE}: no such file here; say `-c FILE`, or set {SETTINGS_VARIABLE}"
        )
    return load_settings(path)


def query_of(
    ids: list[int] | None,
    reason: str | None,
    user: str | None,
    since: str | None,
    until: str | None,
) -> DeadLetterQuery:
    """Return the dead letters that arguments select; without any, all of them."""
    from amplitude_intercom.engine.reasons import DeadReason, no_dead_reason
    from amplitude_intercom.engine.spool.letters import DeadLetterQuery

    if reason is not None and reason not in set(DeadReason):
        raise typer.BadParameter(no_dead_reason(reason), param_hint="--reason")
    if user is not None:
        check_text(user, "--user")
    since_ms, until_ms = span_ms(since, until)
    query = DeadLetterQuery(ids or None, reason, user, since_ms, until_ms)
    return DeadLetterQuery(every=True) if query.is_empty else query


def check_text(text: str, option: str) -> None:
    """Refuse bytes that are not UTF-8: no user id has them, and a replacement would be another."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"`{text}` is not UTF-8", param_hint=option) from None


def _time_ms(text: str | None, option: str) -> int | None:
    from amplitude_intercom.transports.amplitude_times import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        example = "write it as 2024-05-14 or 2024-05-14T09:00:00Z"
        raise typer.BadParameter(f"{error}; {example}", param_hint=option) from None


def span_ms(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """Return the instants of ``--since`` and ``--until`` in Unix milliseconds."""
    since_ms, until_ms = _time_ms(since, "--since"), _time_ms(until, "--until")
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise typer.BadParameter(f"`{since}` is not before --until `{until}`", param_hint="--since")
    return since_ms, until_ms


def hours_of(start: str, end: str) -> Span:
    """Return the hours of ``--export``, up to the present one."""
    from amplitude_intercom.transports.amplitude_exports import HOUR_S, Span, parse_hour

    try:
        span = Span(parse_hour(start), parse_hour(end, ends=True))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--export") from None
    if span.hours < 1:
        raise typer.BadParameter(f"`{end}` is before `{start}`", param_hint="--export")
    this_hour = int(time.time()) // HOUR_S
    if parse_hour(end) > this_hour:
        raise typer.BadParameter(f"`{end}` is yet to come (UTC)", param_hint="--export")
    return Span(span.first, min(span.last, this_hour))
