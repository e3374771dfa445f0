"""Findings and notes about relays, for ``check`` and ``preview``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from amplitude_intercom.engine.clients import address_of, amplitude_client_of
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.settings_findings import key_name
from amplitude_intercom.engine.relay.answers import AnswerKind, Verdict, judge
from amplitude_intercom.engine.setting_types import ANY_KEY, Secret
from amplitude_intercom.engine.settings import Relay, Settings
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.errors import NoAnswer

MOST_ASKED = 10
"""API keys that Amplitude is asked about."""

NO_RELAY = "no [[relay]]: Amplitude does not get what its SDKs send here"


def describe_relay(settings: Settings, relay: Relay) -> dict[str, Any]:
    """Return a description of a relay."""
    keys = ", ".join(map(key_name, settings.keys_of(relay))) or "none"
    return {
        "relay": relay.name,
        "enabled": relay.enabled,
        "keys": keys,
        "to": address_of(relay),
        "when full": relay.when_full,
    }


def relay_notes(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each relay about the requests that go on to Amplitude."""
    for relay in settings.relay:
        if relay.enabled:
            keys = ", ".join(map(key_name, settings.keys_of(relay)))
            yield (
                f"relay {relay.name}: requests with the key {keys} that come over HTTP go on to"
                f" {address_of(relay)} as they came, whatever syncs keep of them"
            )


async def ask_amplitude(settings: Settings, relay: Relay) -> list[Finding]:
    """Ask a relay's host about its API keys, with requests that have no events."""
    async with amplitude_client_of(relay) as client:
        findings: list[Finding] = []
        for key in settings.keys_of(relay)[:MOST_ASKED]:
            finding = await _ask_about(relay, key, client)
            findings += [] if finding is None else [finding]
            if finding is not None and finding.key != "amplitude_api_keys":
                break  # of the host, which the next key would only say again
        return findings


async def _ask_about(relay: Relay, key: Secret, client: AmplitudeWire) -> Finding | None:
    known = "" if key.reveal() == ANY_KEY else key.reveal()
    body = msgspec.json.encode({"api_key": known, "events": []})
    request = Original("POST", "/2/httpapi", "", "application/json", body)
    try:
        verdict = judge(await client.send(request), request, 0)
    except NoAnswer as error:
        verdict = Verdict(AnswerKind.NO_ANSWER, said=str(error))
    if verdict.kind is AnswerKind.BAD_KEY:
        text = f"Amplitude refuses the key {key_name(key)}"
        return Finding("error", "amplitude_api_keys", text) if known else None
    misses = verdict.kind is AnswerKind.REFUSED and "missing" in verdict.said.lower()
    # A complaint that events are missing is the right answer to a request without any.
    if verdict.kind in (AnswerKind.TAKEN, AnswerKind.BUSY) or misses:
        return None
    where = "base_url" if relay.base_url else "region"
    status = f"status {verdict.status}, " if verdict.status else ""
    text = f"{address_of(relay)} does not answer as Amplitude does: {status}{verdict.said}"
    return Finding("error", where, text)
