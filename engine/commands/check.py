"""``check``: errors and surprises in settings, by themselves, a workspace and a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from amplitude_intercom.engine.commands.findings import (
    Finding,
    host_findings,
    key_findings,
    key_name,
    port_findings,
    relay_findings,
    secret_findings,
    shared_fields,
)
from amplitude_intercom.engine.commands.machine_findings import machine_findings
from amplitude_intercom.engine.commands.preview import Preview
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
    placed,
)
from amplitude_intercom.engine.commands.running import (
    FAILED,
    OF_SIGNAL,
    OK,
    complain,
    print_json,
)
from amplitude_intercom.engine.commands.sample_findings import (
    MAX_SAMPLE,
    Names,
    SampleEvent,
    name_findings,
    read_events,
    type_of,
    unselected,
    wanted_of,
)
from amplitude_intercom.engine.commands.spool_access import is_running
from amplitude_intercom.engine.commands.terminal import count, print_table, say
from amplitude_intercom.engine.commands.workspace_findings import ask_intercom
from amplitude_intercom.engine.config import Written
from amplitude_intercom.engine.delivery.event_names import WARN_AT
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules.contacts import field_name
from amplitude_intercom.engine.rules.paths import FIELDS
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.rules.texts import fit_key, fit_name
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES, Settings, Sync, source_and_target
from amplitude_intercom.engine.settings_problems import event_names
from amplitude_intercom.engine.sources import sources_of

DOCUMENTED_METADATA_KEYS = 10
"""Keys that are kept, as the API reference says; the help centre says 20 (API description 2.16)."""


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
    general = _general_findings(settings, running=running)
    general += host_findings(written.table)
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


def _general_findings(settings: Settings, *, running: bool) -> list[Finding]:
    """Return the findings that belong to no sync and no relay."""
    return [
        *key_findings(settings),
        *secret_findings(settings),
        *relay_findings(settings),
        *shared_fields(settings),
        *port_findings(settings),
        *machine_findings(settings, running=running),
    ]


async def _sync_findings(
    settings: Settings, events: Sequence[SampleEvent] | None, *, offline: bool
) -> dict[str, list[Finding]]:
    """Return the findings of each sync, by name; ``events``: the sample, if there is one."""
    found: dict[str, list[Finding]] = {}
    for sync in settings.sync:
        fed = any(sync.name in arguments.values() for arguments in settings.sources.values())
        findings = list(_settings_findings(sync, has_source=fed))
        known = None
        if not offline:
            more, known = await ask_intercom(sync)
            findings += more
        if events is not None:
            findings += _sample_findings(sync, events, Preview(sync, known))
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


# --- the settings alone -------------------------------------------------------------------


def _settings_findings(sync: Sync, *, has_source: bool) -> Iterator[Finding]:
    selection = Selection(sync.events.select)
    if not sync.amplitude_api_keys and not has_source:
        text = "none: only `forward` reaches this sync"
        yield Finding("warning", "amplitude_api_keys", text)
    if sync.events.enabled and not selection.types and not selection.any_type:
        yield Finding("warning", "events.select", "empty: no event is sent")
    if sync.events.enabled and selection.any_type:
        text = f"any event type: names beyond {MAX_EVENT_TYPES} become dead letters"
        yield Finding("warning", "events.select", text)
    names = event_names(selection.types, sync.events)
    if len(names) >= WARN_AT:
        text = f"{len(names)} names; Intercom keeps {MAX_EVENT_TYPES}, whoever sends them"
        yield Finding("warning", "events.select", text)
    for name in sorted(selection.types):
        wanted = sync.events.rename.get(name, name)
        if fit_name(wanted) != wanted:
            text = f"`{wanted}` is called `{fit_name(wanted)}` in Intercom"
            yield Finding("warning", "events.select", text)
    yield from _where_findings(sync)
    yield from _metadata_findings(sync)


def _where_findings(sync: Sync) -> Iterator[Finding]:
    for number, selector in enumerate(sync.events.select):
        for clause in selector.where:
            if "." not in clause.property and clause.property not in FIELDS:
                text = (
                    f"`{clause.property}` is no field of an event itself; is it"
                    f" `event.{clause.property}` or `user.{clause.property}`?"
                )
                yield Finding("warning", f"events.select[{number}].where", text)


def _metadata_findings(sync: Sync) -> Iterator[Finding]:
    metadata = sync.events.metadata
    sent = min(len(metadata), sync.events.metadata_limit)
    if sent > DOCUMENTED_METADATA_KEYS:
        text = f"{sent} keys: Intercom's API reference says that the first 10 are kept"
        yield Finding("warning", "events.metadata", text)
    for index, item in enumerate(metadata):
        _, target = source_and_target(item)
        if fit_key(target) != target:
            text = f"`{target}` is sent as `{fit_key(target)}`"
            yield Finding("warning", f"events.metadata[{index}]", text)


# --- a sample -----------------------------------------------------------------------------


def _sample_findings(
    sync: Sync, events: Sequence[SampleEvent], preview: Preview
) -> Iterator[Finding]:
    """Yield what the settings make of real events, as ``preview`` answers for them."""
    answers = [preview.judge(head, raw) for _, head, raw in events]
    verdicts = Counter((a["verdict"], a["reason"]) for a in answers)
    sent, nameless = verdicts["send", ""], verdicts["drop", "no_identity"]
    of = f"of {len(answers)} events of the sample"
    if not sent and nameless:
        text = f"none {of} has a `{sync.mapping.source}` to find a contact by"
        yield Finding("error", "mapping.from", text)
    elif nameless:
        text = f"{nameless} {of} have no `{sync.mapping.source}`: they are dropped"
        yield Finding("warning", "mapping.from", text)
    elif not sent:
        yield Finding("warning", "events.select", f"none {of} would be sent")
    for reason in ("not_selected", "filtered_out"):
        if verdicts["drop", reason]:
            types = Counter(
                type_of(event[1])
                for event, answer in zip(events, answers, strict=True)
                if answer["reason"] == reason
            )
            text = f"{verdicts['drop', reason]} {of} are dropped: {reason}"
            yield Finding("warning", "events.select", f"{text}: {unselected(sync, types)}")
    yield from name_findings(sync, Names((raw for _, _, raw in events), wanted_of(sync)))
    for (verdict, reason), number in sorted(verdicts.items()):
        if verdict == "reject":
            text = f"{number} {of} would be dead letters: {reason} ({DeadReason(reason).means})"
            yield Finding("warning", "events", text)
    changed = Counter(text for a in answers for text in a.get("adjustments", ()))
    for text, number in changed.most_common(20):
        where = "users.properties" if _is_about_a_contact(text, sync) else "events.metadata"
        yield Finding("warning", where, f"{text} ({number}×)")


def _is_about_a_contact(adjustment: str, sync: Sync) -> bool:
    names = [field_name(source_and_target(item)[1]) for item in sync.users.properties]
    return adjustment.startswith((*(f"{name}: " for name in names), "user_properties: "))
