"""The command ``amplitude-intercom``: arguments only; ``engine.commands`` does the work.

Imports are made by the command that needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from amplitude_intercom.engine import cli_setup
from amplitude_intercom.engine.cli_options import (
    CONFIG_HELP,
    MOST,
    Config,
    Ids,
    Json,
    Reason,
    Since,
    SyncName,
    TakerName,
    Until,
    User,
    check_text,
    finish,
    finish_plainly,
    finite_seconds,
    given_before,
    hours_of,
    query_of,
    settings_at,
    span_ms,
    written_at,
)
from amplitude_intercom.engine.cli_streams import close_stdout, open_standard_streams
from amplitude_intercom.transports.own_version import own_version


class _Root(TyperGroup):
    """All commands; arguments that errors quote are escaped, so that no terminal obeys them."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _quoting_text():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _quoting_text():
            return super().invoke(ctx)


# click's UsageError, reached this way because newer versions of typer have a copy of click.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@contextmanager
def _quoting_text() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        from amplitude_intercom.engine.log_lines import printable

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(own_version())
        raise typer.Exit


@app.callback()
def _root(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", show_default=False, help=CONFIG_HELP)
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    given_before.set(config)


@app.command()
def demo() -> None:
    """Show the whole thing on embedded parts: a local Intercom, sample events, what arrived."""
    from amplitude_intercom.engine.commands.demo import demo as main

    finish(main)


app.command()(cli_setup.init)


@app.command(name="run")
def run_daemon(config: Config) -> None:
    """Serve the configured sources until SIGTERM."""
    from amplitude_intercom.engine.commands.daemon import start as main

    finish(lambda: main(config, settings_at))


@app.command()
def forward(
    config: Config,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files and folders; -, or none, is standard input.")
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
            callback=finite_seconds,
            help="Seconds to wait for retries at the end, or for anything to be settled while"
            " reading pauses, or for an export; default: for all of them, but a run of which no"
            " event is accepted ends at once.",
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
    """Deliver files, a pipe or Amplitude's history, through a running daemon where there is one;
    exit when all of it is settled."""
    from amplitude_intercom.engine.commands.exporting import Asked
    from amplitude_intercom.engine.commands.forward import forward as main

    since_ms, until_ms = span_ms(since, until)
    asked = Asked(hours_of(*export), again) if export else None
    if asked and paths:
        raise typer.BadParameter("--export fetches its events itself; leave the files out")
    if again and not asked:
        raise typer.BadParameter("--again belongs to --export")

    finish(
        lambda: main(
            settings_at(config),
            paths or ["-"],
            sync=sync,
            since_ms=since_ms,
            until_ms=until_ms,
            strict=strict,
            as_json=json,
            max_wait_s=max_wait,
            export=asked,
        )
    )


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

    finish(lambda: main(settings_at(config), path, sync=sync, live=live))


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

    consent = Consent(given=yes, events=not no_events) if probe else None

    finish(
        lambda: main(
            written_at(config),
            sample=sample,
            offline=offline,
            as_json=json,
            probe=consent,
        )
    )


@app.command()
def status(config: Config, json: Json = False) -> None:
    """Print the accounting: received = delivered + dropped + dead + pending."""
    from amplitude_intercom.engine.commands.status import print_status

    finish(lambda: print_status(settings_at(config), as_json=json))


@app.command()
def reload(config: Config, json: Json = False) -> None:
    """Have the running daemon read its settings file again; what did not change is not touched."""
    from amplitude_intercom.engine.commands import ask_reload

    finish(lambda: ask_reload.reload(lambda: settings_at(config), as_json=json))


app.command()(cli_setup.sandbox)


app.command()(cli_setup.explain)


app.command()(cli_setup.deploy)


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

    query = query_of(None, reason, user, since, until)

    finish(
        lambda: commands.list_dead_letters(
            settings_at(config), sync, query, after=after, limit=limit, as_json=json
        )
    )


@dead_letters.command(name="show")
def show_dead_letter(
    config: Config,
    id_: Annotated[int, typer.Argument(metavar="ID", min=0, max=MOST, help="Its id.")],
    sync: TakerName = None,
    json: Json = False,
) -> None:
    """Show one dead letter, whole."""
    from amplitude_intercom.engine.commands import dead_letters as commands

    finish(lambda: commands.show_dead_letter(settings_at(config), sync, id_, as_json=json))


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
    """Send dead letters through filter and mapping again, behind their user's waiting records."""
    from amplitude_intercom.engine.commands import dead_letters as commands

    query = query_of(ids, reason, user, since, until)

    main = commands.foresee_replay if dry_run else commands.replay_dead_letters
    finish(lambda: main(settings_at(config), sync, query, as_json=json))


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

    if every == bool(ids or reason or user or since or until):
        wrong = "all of them, or ids and conditions, not both" if every else "say which"
        raise typer.BadParameter(f"{wrong}: ids, a condition, or --all")
    query = query_of(ids, reason, user, since, until)

    finish(lambda: commands.discard_dead_letters(settings_at(config), sync, query, as_json=json))


@users.command(name="show")
def show_user(
    config: Config,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="What `sync.mapping.from` says of the user.")
    ],
    sync: SyncName = None,
    json: Json = False,
) -> None:
    """Show the state of one user; exits 1 where nothing is known."""
    from amplitude_intercom.engine.commands import users as commands

    check_text(key, "KEY")

    finish(lambda: commands.show(settings_at(config), sync, key, as_json=json))


@spools.command(name="status")
def spool_status(config: Config, json: Json = False) -> None:
    """Print the contents of the spool's file, and its size."""
    from amplitude_intercom.engine.commands import spool

    finish_plainly(lambda: spool.status(settings_at(config), as_json=json))


@spools.command(name="verify")
def spool_verify(config: Config, json: Json = False) -> None:
    """Check every checksum and the accounting; exits 1 where something is damaged."""
    from amplitude_intercom.engine.commands import spool

    finish_plainly(lambda: spool.verify(settings_at(config), as_json=json))


@spools.command(name="compact")
def spool_compact(config: Config, json: Json = False) -> None:
    """Give the space that the spool's file does not need back to the disk."""
    from amplitude_intercom.engine.commands import spool

    finish(lambda: spool.compact(settings_at(config), as_json=json))


@spools.command(name="backup")
def spool_backup(
    config: Config,
    path: Annotated[Path, typer.Argument(help="A file that is not there yet.")],
    json: Json = False,
) -> None:
    """Write a checked copy of the spool, also beside a running daemon."""
    from amplitude_intercom.engine.commands import spool

    finish_plainly(lambda: spool.backup(settings_at(config), path, as_json=json))


@spools.command(name="move")
def spool_move(
    config: Config,
    old: Annotated[str, typer.Argument(help="A sync that is not in the settings any more.")],
    new: Annotated[str, typer.Argument(help="A sync that is.")],
    json: Json = False,
) -> None:
    """Give the records of a sync that is gone from the settings to another."""
    from amplitude_intercom.engine.commands import spool

    finish(lambda: spool.move(settings_at(config), old, new, as_json=json))


@spools.command(name="drop")
def spool_drop(
    config: Config,
    old: Annotated[str, typer.Argument(help="A sync that is not in the settings any more.")],
    yes: Annotated[bool, typer.Option("--yes", help="Needed: it cannot be had back.")] = False,
    json: Json = False,
) -> None:
    """Drop the records of a sync that is gone from the settings."""
    from amplitude_intercom.engine.commands import spool

    if not yes:
        raise typer.BadParameter(f"--yes is needed: what waits of `{old}` is gone for good")

    finish(lambda: spool.drop(settings_at(config), old, as_json=json))


def main() -> None:
    """Run the command."""
    open_standard_streams()
    try:
        app(prog_name="amplitude-intercom")
    except OSError as error:
        # Of standard output, while the help is printed.
        sys.exit(f"error: {error.strerror}")
    finally:
        close_stdout()
