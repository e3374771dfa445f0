"""The command ``amplitude-intercom``: arguments only; ``engine.commands`` does the work.

Imports are made by the command that needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from amplitude_intercom.engine.settings import Settings
    from amplitude_intercom.engine.spool.rows import DeadLetterQuery
    from amplitude_intercom.transports.amplitude_exports import Span


class _Root(TyperGroup):
    """All commands. What they quote of their arguments is text: no terminal obeys it."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _quoting_text():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _quoting_text():
            return super().invoke(ctx)


_UsageError: type[Exception] = typer.BadParameter.__mro__[
    1
]  # click's, of which newer typers have a copy


@contextmanager
def _quoting_text() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        from amplitude_intercom.engine.logs import printable

        of_click: Any = error
        of_click.message = printable(of_click.message, lines=True)
        raise


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Streams Amplitude events and users to Intercom.",
)
dead_letters = typer.Typer(
    no_args_is_help=True, help="Look at dead letters, replay or discard them."
)
app.add_typer(dead_letters, name="dead-letters")
users = typer.Typer(no_args_is_help=True, help="Look at one user.")
app.add_typer(users, name="users")
spools = typer.Typer(no_args_is_help=True, help="Look at the file that holds what waits.")
app.add_typer(spools, name="spool")

SETTINGS_FILE = "amplitude-intercom.toml"
SETTINGS_VARIABLE = "AMPLITUDE_INTERCOM_CONFIG"


_given_before: ContextVar[Path | None] = ContextVar("_given_before", default=None)
"""The settings file that stands before the command, as in `-c FILE status`."""


def _default_settings() -> Path:
    """Return the settings file where none stands behind the command."""
    return _given_before.get() or Path(os.environ.get(SETTINGS_VARIABLE) or SETTINGS_FILE)


_HELP = f"The settings file (TOML); default: ${SETTINGS_VARIABLE}, else {SETTINGS_FILE}."
Config = Annotated[
    Path,
    typer.Option(
        "-c", "--config", default_factory=_default_settings, show_default=False, help=_HELP
    ),
]
SyncName = Annotated[str | None, typer.Option("--sync", help="Which of several syncs.")]
TakerName = Annotated[
    str | None, typer.Option("--sync", help="Which of several syncs; of a relay: `relay:NAME`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MOST = (1 << 63) - 1
"""The largest number that is an id, as ``engine.spool.rows`` has it."""

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


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("amplitude-intercom"))
        raise typer.Exit


def _finite(seconds: float | None) -> float | None:
    """Refuse what is no time span: NaN is neither more nor less than anything."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise typer.BadParameter(f"expected seconds, 0 or more, not {seconds}")
    return seconds


@app.callback()
def _root(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", show_default=False, help=_HELP)
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    _given_before.set(config)


@app.command()
def demo() -> None:
    """Show the whole thing on embedded parts: a local Intercom, sample events, what arrived."""
    from amplitude_intercom.engine.commands.demo import demo as main
    from amplitude_intercom.engine.commands.running import run

    raise typer.Exit(run(main))


@app.command()
def init(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", show_default=False, help="What to write.")
    ] = None,
    amplitude_key: Annotated[
        str | None, typer.Option(help="API key of the Amplitude project; env:NAME or file:PATH.")
    ] = None,
    intercom_token: Annotated[
        str | None, typer.Option(help="Intercom's access token; better as env:NAME or file:PATH.")
    ] = None,
    region: Annotated[
        Literal["us", "eu", "au"] | None,
        typer.Option(help="Of the Intercom workspace; default: the one that takes the token."),
    ] = None,
    intercom_url: Annotated[
        str | None, typer.Option(help="Instead of a region: a proxy, the sandbox.")
    ] = None,
    relay: Annotated[
        bool | None,
        typer.Option(
            "--relay/--no-relay", show_default=False, help="Pass requests on to Amplitude."
        ),
    ] = None,
    amplitude_url: Annotated[
        str | None, typer.Option(help="Where to, instead of Amplitude: a proxy, the sandbox.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="A file of events to propose event types from.")
    ] = None,
    event: Annotated[list[str] | None, typer.Option(help="An event type to send.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="An event property to send along.")
    ] = None,
    property_: Annotated[
        list[str] | None, typer.Option("--property", help="A user property to write.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Try nothing out at Intercom and Amplitude.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is proposed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Ask a few questions, or take flags, and write a commented settings file."""
    from amplitude_intercom.engine.commands.init import init as main
    from amplitude_intercom.engine.commands.init_interview import Given
    from amplitude_intercom.engine.commands.running import run_plainly

    given = Given(
        amplitude_key=amplitude_key,
        intercom_token=intercom_token,
        region=region,
        intercom_url=intercom_url,
        amplitude_url=amplitude_url,
        relay=relay,
        sample=sample,
        events=event or (),
        metadata=metadata or (),
        properties=property_ or (),
        offline=offline,
        yes=yes,
        force=force,
    )
    raise typer.Exit(run_plainly(lambda: main(path or _default_settings(), given)))


@app.command(name="run")
def run_daemon(config: Config) -> None:
    """Serve the configured sources until SIGTERM."""
    from amplitude_intercom.engine.commands.daemon import run as main
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await main(_settings(config))

    raise typer.Exit(run(work))


@app.command()
def forward(
    config: Config,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files and folders; - is standard input.")
    ] = None,
    sync: SyncName = None,
    since: Annotated[
        str | None, typer.Option(help="Only events of this time (ISO 8601) or later.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only events before this time.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 when something became a dead letter.")
    ] = False,
    max_wait: Annotated[
        float | None,
        typer.Option(
            callback=_finite,
            help="Seconds to wait for retries at the end, or for anything to be settled while"
            " reading pauses, or for an export; default: for all of them.",
        ),
    ] = None,
    json: Json = False,
    export: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--export",
            metavar="START END",
            help="Instead of files: these hours from Amplitude's Export API (UTC, both included),"
            " each as 2024-05-14T09 or as a day. Run again, it goes on where it stopped.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="With --export: fetch finished hours, too.")
    ] = False,
) -> None:
    """Deliver files, a pipe or Amplitude's history, and exit when all of it is settled."""
    from amplitude_intercom.engine.commands.exporting import Asked
    from amplitude_intercom.engine.commands.forward import forward as main
    from amplitude_intercom.engine.commands.running import run

    since_ms, until_ms = _span_ms(since, until)
    asked = Asked(_hours(*export), again) if export else None
    if asked and paths:
        raise typer.BadParameter("--export fetches its events itself; leave the files out")
    if again and not asked:
        raise typer.BadParameter("--again belongs to --export")

    async def work() -> int:
        return await main(
            _settings(config),
            paths or ["-"],
            sync=sync,
            since_ms=since_ms,
            until_ms=until_ms,
            strict=strict,
            as_json=json,
            max_wait_s=max_wait,
            export=asked,
        )

    raise typer.Exit(run(work))


@app.command()
def preview(
    config: Config,
    path: Annotated[str, typer.Argument(help="A file; - is standard input.")] = "-",
    sync: SyncName = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the workspace for its attributes first.")
    ] = False,
) -> None:
    """Print for each event what would be sent, without sending it."""
    from amplitude_intercom.engine.commands.preview import preview as main
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await main(_settings(config), path, sync=sync, live=live)

    raise typer.Exit(run(work))


@app.command()
def check(
    config: Config,
    sample: Annotated[
        str | None, typer.Argument(help="A file of events to try the settings on.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask Intercom.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Try out, with test contacts that are archived at the end, what Intercom does not"
            " document; asks first.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --probe: do not ask first.")] = False,
    no_events: Annotated[
        bool, typer.Option("--no-events", help="With --probe: send no events.")
    ] = False,
    json: Json = False,
) -> None:
    """Validate the settings, ask Intercom, and say what will not work."""
    if probe and offline:
        raise typer.BadParameter("--probe asks Intercom, --offline does not: one of them")
    if not probe and (yes or no_events):
        raise typer.BadParameter(f"{'--yes' if yes else '--no-events'} belongs to --probe")
    from amplitude_intercom.engine.commands.check import check as main
    from amplitude_intercom.engine.commands.probing import Consent
    from amplitude_intercom.engine.commands.running import run

    consent = Consent(given=yes, events=not no_events) if probe else None

    async def work() -> int:
        return await main(
            _settings(config), sample=sample, offline=offline, as_json=json, probe=consent
        )

    raise typer.Exit(run(work))


@app.command()
def status(config: Config, json: Json = False) -> None:
    """Print the accounting: received = delivered + dropped + dead + pending."""
    from amplitude_intercom.engine.commands import inspect
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await inspect.status(_settings(config), as_json=json)

    raise typer.Exit(run(work))


@app.command()
def sandbox(
    listen: Annotated[str, typer.Option(help="host:port")] = "127.0.0.1:8720",
    amplitude: Annotated[
        str | None, typer.Option(help="host:port of a local Amplitude, for relays; none: without.")
    ] = None,
    latency: Annotated[
        float, typer.Option(callback=_finite, help="Seconds that an answer takes.")
    ] = 0.05,
    requests_per_minute: Annotated[int, typer.Option(help="The rate limit.")] = 10_000,
    token: Annotated[str | None, typer.Option(help="Accept only this access token.")] = None,
    seed: Annotated[int, typer.Option(help="Of latencies and faults.")] = 0,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="A custom attribute that exists, NAME or NAME:TYPE; none: takes any."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help='A fault as JSON, e.g. \'{"kind": "status", "status": 503, "share": 0.1}\'.'
        ),
    ] = None,
) -> None:
    """Run a local Intercom, with faults on request, and a local Amplitude."""
    from amplitude_intercom.engine.commands.running import run
    from amplitude_intercom.engine.commands.sandbox import sandbox as main

    async def work() -> int:
        return await main(
            listen,
            latency_s=latency,
            requests_per_minute=requests_per_minute,
            token=token,
            seed=seed,
            faults=fault or [],
            attributes=attribute or [],
            amplitude=amplitude,
        )

    raise typer.Exit(run(work))


@app.command()
def explain(
    word: Annotated[
        str | None, typer.Argument(help="A setting, a reason or a metric; none lists them.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a word means that settings, logs, tables or metrics use, and what to do about it."""
    from amplitude_intercom.engine.commands.explain import explain as main
    from amplitude_intercom.engine.commands.running import run_plainly

    raise typer.Exit(run_plainly(lambda: main(word, as_json=json)))


@app.command()
def deploy(
    target: Annotated[str, typer.Argument(help="systemd, container or kubernetes.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            show_default=False,
            help="The settings file that it is for; default: an example.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Write the files into this folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --to: write over files that exist.")
    ] = False,
) -> None:
    """Print the files that systemd, a container or Kubernetes runs the daemon by."""
    from amplitude_intercom.engine.commands.deploy import deploy as main
    from amplitude_intercom.engine.commands.running import run_plainly

    given = config or _given_before.get()
    raise typer.Exit(run_plainly(lambda: main(target, given, to, force=force)))


@dead_letters.command(name="list")
def list_dead_letters(
    config: Config,
    sync: TakerName = None,
    reason: Reason = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="Show this many at most.")] = 1_000,
    after: Annotated[
        str, typer.Option(metavar="POSITION", help="Go on where another list says it ended.")
    ] = "",
    json: Json = False,
) -> None:
    """List dead letters."""
    from amplitude_intercom.engine.commands import dead_letters as commands
    from amplitude_intercom.engine.commands.running import run

    query = _query(None, reason, user, since, until)
    _check_position(after)

    async def work() -> int:
        return await commands.list_dead_letters(
            _settings(config), sync, query, after=after, limit=limit, as_json=json
        )

    raise typer.Exit(run(work))


@dead_letters.command(name="show")
def show_dead_letter(
    config: Config,
    id_: Annotated[int, typer.Argument(metavar="ID", min=0, max=MOST, help="Its id.")],
    sync: TakerName = None,
    json: Json = False,
) -> None:
    """Show one dead letter, whole."""
    from amplitude_intercom.engine.commands import dead_letters as commands
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await commands.show_dead_letter(_settings(config), sync, id_, as_json=json)

    raise typer.Exit(run(work))


@dead_letters.command(name="replay")
def replay_dead_letters(
    config: Config,
    ids: Ids = None,
    sync: TakerName = None,
    reason: Reason = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be sent today.")
    ] = False,
    json: Json = False,
) -> None:
    """Send dead letters through filter and mapping again, behind what their user has waiting."""
    from amplitude_intercom.engine.commands import dead_letters as commands
    from amplitude_intercom.engine.commands.running import run

    query = _query(ids, reason, user, since, until)

    async def work() -> int:
        main = commands.foresee_replay if dry_run else commands.replay_dead_letters
        return await main(_settings(config), sync, query, as_json=json)

    raise typer.Exit(run(work))


@dead_letters.command(name="discard")
def discard_dead_letters(
    config: Config,
    ids: Ids = None,
    sync: TakerName = None,
    reason: Reason = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    every: Annotated[
        bool, typer.Option("--all", help="Needed where neither ids nor a condition is given.")
    ] = False,
    json: Json = False,
) -> None:
    """Settle dead letters as dropped: they are gone for good."""
    from amplitude_intercom.engine.commands import dead_letters as commands
    from amplitude_intercom.engine.commands.running import run

    if every == bool(ids or reason or user or since or until):
        wrong = "all of them, or ids and conditions, not both" if every else "say which"
        raise typer.BadParameter(f"{wrong}: ids, a condition, or --all")
    query = _query(ids, reason, user, since, until)

    async def work() -> int:
        return await commands.discard_dead_letters(_settings(config), sync, query, as_json=json)

    raise typer.Exit(run(work))


@users.command(name="show")
def show_user(
    config: Config,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="What `sync.mapping.from` says of the user.")
    ],
    sync: SyncName = None,
    json: Json = False,
) -> None:
    """Show what is known of one user; exits 1 where that is nothing."""
    from amplitude_intercom.engine.commands import users as commands
    from amplitude_intercom.engine.commands.running import run

    _check_text(key, "KEY")

    async def work() -> int:
        return await commands.show(_settings(config), sync, key, as_json=json)

    raise typer.Exit(run(work))


@spools.command(name="status")
def spool_status(config: Config, json: Json = False) -> None:
    """Print what the spool's file holds, and how large it is."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run_plainly

    raise typer.Exit(run_plainly(lambda: spool.status(_settings(config), as_json=json)))


@spools.command(name="verify")
def spool_verify(config: Config, json: Json = False) -> None:
    """Check every checksum and the accounting; exits 1 where something is damaged."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run_plainly

    raise typer.Exit(run_plainly(lambda: spool.verify(_settings(config), as_json=json)))


@spools.command(name="compact")
def spool_compact(config: Config, json: Json = False) -> None:
    """Give the space that the spool's file does not need back to the disk."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await spool.compact(_settings(config), as_json=json)

    raise typer.Exit(run(work))


@spools.command(name="backup")
def spool_backup(
    config: Config,
    path: Annotated[Path, typer.Argument(help="A file that is not there yet.")],
    json: Json = False,
) -> None:
    """Write a checked copy of the spool, also beside a running daemon."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run_plainly

    raise typer.Exit(run_plainly(lambda: spool.backup(_settings(config), path, as_json=json)))


@spools.command(name="move")
def spool_move(
    config: Config,
    old: Annotated[str, typer.Argument(help="A sync that is not in the settings any more.")],
    new: Annotated[str, typer.Argument(help="A sync that is.")],
    json: Json = False,
) -> None:
    """Give what is left of a sync that has gone from the settings to another."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run

    async def work() -> int:
        return await spool.move(_settings(config), old, new, as_json=json)

    raise typer.Exit(run(work))


@spools.command(name="drop")
def spool_drop(
    config: Config,
    old: Annotated[str, typer.Argument(help="A sync that is not in the settings any more.")],
    yes: Annotated[bool, typer.Option("--yes", help="Needed: it cannot be had back.")] = False,
    json: Json = False,
) -> None:
    """Drop what is left of a sync that has gone from the settings."""
    from amplitude_intercom.engine.commands import spool
    from amplitude_intercom.engine.commands.running import run

    if not yes:
        raise typer.BadParameter(f"what waits of `{old}` is gone for good then", param_hint="--yes")

    async def work() -> int:
        return await spool.drop(_settings(config), old, as_json=json)

    raise typer.Exit(run(work))


def _settings(path: Path) -> Settings:
    from amplitude_intercom.engine.commands.running import load_settings
    from amplitude_intercom.engine.errors import SettingsError

    if str(path) == SETTINGS_FILE and not path.exists():
        raise SettingsError(
            f"{SETTINGS_FILE}: no such file here; say `-c FILE`, or set {SETTINGS_VARIABLE}"
        )
    return load_settings(path)


def _query(
    ids: list[int] | None,
    reason: str | None,
    user: str | None,
    since: str | None,
    until: str | None,
) -> DeadLetterQuery:
    from amplitude_intercom.engine.reasons import DeadReason, no_dead_reason
    from amplitude_intercom.engine.spool.rows import DeadLetterQuery

    if reason is not None and reason not in set(DeadReason):
        raise typer.BadParameter(no_dead_reason(reason), param_hint="--reason")
    if user is not None:
        _check_text(user, "--user")
    since_ms, until_ms = _span_ms(since, until)
    query = DeadLetterQuery(ids or None, reason, user, since_ms, until_ms)
    return DeadLetterQuery(every=True) if query.is_empty else query


def _check_text(text: str, option: str) -> None:
    """Refuse bytes that are no UTF-8: no user is called so, and what is like it is another one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"`{text}` is not UTF-8", param_hint=option) from None


def _check_position(after: str) -> None:
    from amplitude_intercom.engine.spool.rows import Position

    try:
        Position.read(after)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after") from None


def _time_ms(text: str | None, option: str) -> int | None:
    from amplitude_intercom.transports.amplitude_times import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        example = "write it as 2024-05-14 or 2024-05-14T09:00:00Z"
        raise typer.BadParameter(f"{error}; {example}", param_hint=option) from None


def _span_ms(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    since_ms, until_ms = _time_ms(since, "--since"), _time_ms(until, "--until")
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise typer.BadParameter(f"`{since}` is not before --until `{until}`", param_hint="--since")
    return since_ms, until_ms


def _hours(start: str, end: str) -> Span:
    """Return the hours that ``--export`` names."""
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


def main() -> None:
    """Run the command."""
    _open_standard_streams()
    try:
        app(prog_name="amplitude-intercom")
    except OSError as error:  # of stdout, while the help is printed
        sys.exit(f"error: {error.strerror}")
    finally:
        _close_stdout()


def _open_standard_streams() -> None:
    """Give the three standard descriptors something to stand for, and let no character fail.

    The next file that is opened would get the number of one that is closed (`>&-`), and with it all
    that is printed. ``sys.stdin`` stays None: closed is not empty.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Write what is left; where that cannot be, the interpreter is not to try it once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
