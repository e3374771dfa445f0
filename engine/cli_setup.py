"""Arguments of the commands that need no spool: ``init``, ``sandbox``, ``explain``, ``deploy``.

Imports are made by the command that needs them, so that ``--help`` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from amplitude_intercom.engine.cli_options import (
    Json,
    default_settings,
    finish,
    finish_plainly,
    finite_seconds,
    given_before,
)


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
            "--relay/--no-relay",
            show_default=False,
            help="Pass requests on to Amplitude, or not; default: pass on.",
        ),
    ] = None,
    amplitude_region: Annotated[
        Literal["us", "eu"] | None,
        typer.Option(help="Of the Amplitude project; default: the one that takes the key."),
    ] = None,
    amplitude_url: Annotated[
        str | None, typer.Option(help="Where to, instead of Amplitude: a proxy, the sandbox.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="Events to make proposals from: a file, or a data directory.")
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
    from amplitude_intercom.engine.commands.init_flags import Flags

    flags = Flags(
        amplitude_key=amplitude_key,
        intercom_token=intercom_token,
        region=region,
        intercom_url=intercom_url,
        amplitude_region=amplitude_region,
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
    finish_plainly(lambda: main(path or default_settings(), flags))


def sandbox(
    listen: Annotated[str, typer.Option(help="host:port")] = "127.0.0.1:8720",
    amplitude: Annotated[
        str | None, typer.Option(help="host:port of a local Amplitude, for relays; none: without.")
    ] = None,
    latency: Annotated[
        float, typer.Option(callback=finite_seconds, help="Seconds that an answer takes.")
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
    from amplitude_intercom.engine.commands.sandbox import sandbox as main

    finish(
        lambda: main(
            listen,
            latency_s=latency,
            requests_per_minute=requests_per_minute,
            token=token,
            seed=seed,
            faults=fault or [],
            attributes=attribute or [],
            amplitude=amplitude,
        )
    )


def explain(
    word: Annotated[
        str | None,
        typer.Argument(help="A setting, a reason or a metric, or `alerts`; none lists them."),
    ] = None,
    json: Json = False,
) -> None:
    """Explain a word of settings, logs, tables or metrics, with a remedy.

    `explain alerts` prints alerting rules for Prometheus.
    """
    from amplitude_intercom.engine.commands.explain import explain as main

    finish_plainly(lambda: main(word, as_json=json))


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

    given = config or given_before.get()
    finish_plainly(lambda: main(target, given, to, force=force))
