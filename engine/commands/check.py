"""``check``: errors and surprises in settings, by themselves, a workspace and a sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from amplitude_intercom.engine.commands.machine_findings import machine_findings
from amplitude_intercom.engine.commands.probing import (
    Consent,
    Probed,
    has_consent,
    probe_all,
    tokens_of,
)
from amplitude_intercom.engine.commands.relays import (
    NO_RELAY,
    ask_amplitude,
    describe_relay,
)
from amplitude_intercom.engine.commands.running import (
    FAILED,
    OF_SIGNAL,
    OK,
    complain,
    print_json,
)
from amplitude_intercom.engine.commands.sample_events import MAX_SAMPLE, read_events
from amplitude_intercom.engine.commands.spool_access import is_running
from amplitude_intercom.engine.commands.terminal import count, print_table, say
from amplitude_intercom.engine.config import Written
from amplitude_intercom.engine.findings.finding import Finding, placed
from amplitude_intercom.engine.findings.sample_findings import SampleEvent, sample_findings
from amplitude_intercom.engine.findings.settings_findings import (
    findings_of_sync,
    general_findings,
    key_name,
)
from amplitude_intercom.engine.findings.workspace_asking import ask_intercom
from amplitude_intercom.engine.findings.workspace_findings import workspace_findings
from amplitude_intercom.engine.previewing import Preview
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.sources import sources_of


async def check(
    written: Written,
    *,
    sample: str | None = None,
    offline: bool = False,
    as_json: bool = False,
    probe: Consent | None = None,
) -> int:
    """Print findings. Errors that are in the settings alone were refused before.

    ``sample``: a file of events to try the settings on, up to ``MAX_SAMPLE`` of them. ``offline``:
    do not ask Intercom. ``probe``: try out undocumented behaviour of the workspaces.

    Raises:
        SettingsError: a source is not installed, or does not take its settings; or there is no
            terminal to ask for consent on.
        OSError, BadFile: the sample cannot be read.
    """
    settings = written.settings
    if probe is not None and not has_consent(settings, probe):
        return complain("nothing was asked, and nothing made", FAILED)
    sources = list(sources_of(settings))
    limit = settings.largest_file_event_bytes
    events = None if sample is None else list(islice(read_events(sample, limit), MAX_SAMPLE))
    running = await is_running(settings)
    found = await _sync_findings(settings, events, offline=offline)
    if probe is not None:
        probed = await _probe(settings, found, probe)
        if probed.signal:
            return complain("stopped before the end", OF_SIGNAL + probed.signal)
        for name, more in probed.findings.items():
            found[name] += more
    general = [
        *general_findings(settings, written.table),
        *machine_findings(settings, running=running),
    ]
    syncs = [
        {**_describe(sync), "findings": placed(f"sync[{index}]", found[sync.name])}
        for index, sync in enumerate(settings.sync)
    ]
    relays = await _relays(settings, offline=offline)
    everything = [*general, *(f for table in (*syncs, *relays) for f in table["findings"])]
    ok = not any(finding.level == "error" for finding in everything)
    report = {"ok": ok, "sources": sources, "running": running, "findings": general, "syncs": syncs}
    report["relays"] = relays
    if as_json:
        print_json(report)
    else:
        _print(report, everything, offline=offline)
    return OK if ok else FAILED


async def _sync_findings(
    settings: Settings, events: Sequence[SampleEvent] | None, *, offline: bool
) -> dict[str, list[Finding]]:
    """Return the findings of each sync, by name; ``events``: the sample, if there is one."""
    found: dict[str, list[Finding]] = {}
    for sync in settings.sync:
        findings = list(findings_of_sync(settings, sync))
        known = None
        if not offline:
            said = await ask_intercom(sync)
            findings += workspace_findings(sync, said, time.time())
            known = said.known
        if events is not None:
            preview = Preview(sync, known)
            answers = [preview.judge(head, raw) for _, head, raw in events]
            findings += sample_findings(sync, events, answers)
        found[sync.name] = findings
    return found


async def _relays(settings: Settings, *, offline: bool) -> list[dict[str, Any]]:
    """Return each relay with its findings, as the report has it."""
    return [
        {
            **describe_relay(settings, relay),
            "findings": placed(
                f"relay[{index}]", [] if offline else await ask_amplitude(settings, relay)
            ),
        }
        for index, relay in enumerate(settings.relay)
    ]


async def _probe(settings: Settings, found: dict[str, list[Finding]], consent: Consent) -> Probed:
    """Probe with each access token that an Intercom has taken."""
    answering = [
        sync
        for sync in tokens_of(settings.sync)
        if not any(f.level == "error" and f.key.startswith("intercom") for f in found[sync.name])
    ]
    return await probe_all(settings, answering, consent)


LEVELS = ("error", "warning", "fact")
"""In the order in which findings are printed."""


def _print(report: dict[str, Any], findings: Sequence[Finding], *, offline: bool) -> None:
    say(f"sources: {', '.join(report['sources']) or 'none (forward only)'}")
    for sync in report["syncs"]:
        say(f"sync {sync['sync']}")
        print_table([(f"  {key}", v) for key, v in sync.items() if key not in ("sync", "findings")])
    for relay in report["relays"]:
        say(f"relay {relay['relay']}")
        rows = [(f"  {key}", v) for key, v in relay.items() if key not in ("relay", "findings")]
        print_table(rows)
    if not report["relays"] and "http" in report["sources"]:
        say(NO_RELAY)
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        say(f"{finding.level}: {finding.key}: {finding.text}")
    asked = ", nobody was asked" if offline and report["relays"] else ""
    asked = asked or (", Intercom was not asked" if offline else "")
    warnings = sum(finding.level == "warning" for finding in findings)
    good = (
        f"it will work, with {count(warnings, 'warning')}" if warnings else "the settings are good"
    )
    say(f"{good}{asked}" if report["ok"] else "this will not work")


def _describe(sync: Sync) -> dict[str, Any]:
    selection = Selection(sync.events.select)
    return {
        "sync": sync.name,
        "enabled": sync.enabled,
        "keys": ", ".join(map(key_name, sync.amplitude_api_keys)) or "none",
        "intercom": sync.intercom.base_url or sync.intercom.region,
        "contact": f"{sync.mapping.identifier} from {sync.mapping.source}",
        "users": f"{len(sync.users.properties)} properties" if sync.users.enabled else "off",
        "events": _describe_types(selection) if sync.events.enabled else "off",
        "metadata": f"{len(sync.events.metadata)} properties",
    }


def _describe_types(selection: Selection) -> str:
    return "any type" if selection.any_type else f"{len(selection.types)} types"
