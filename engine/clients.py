"""The HTTP clients that the settings ask for, and the names of their access tokens."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from amplitude_intercom.engine.addresses import normal_url
from amplitude_intercom.engine.settings import Intercom, Sync
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.transports.amplitude_client import (
    INGESTION_URLS,
    LEGACY_URLS,
    AmplitudeClient,
)
from amplitude_intercom.transports.intercom import BASE_URLS
from amplitude_intercom.transports.intercom_client import IntercomClient
from amplitude_intercom.transports.sockets import share_of_descriptors

Token = tuple[str, str]
"""The address of an Intercom and an access token for it: one budget of calls."""


def token_of(sync: Sync) -> Token:
    """Return the address and the access token of a sync."""
    return _base_url(sync.intercom), sync.intercom.access_token.reveal()


def token_key(subject: str, token: Token) -> str:
    """Return the key under which the spool keeps a fact about an access token.

    The key holds a digest, so that the token itself is never on disk.
    """
    digest = hashlib.blake2b("\0".join(token).encode(), digest_size=8)
    return f"{subject} {digest.hexdigest()}"


def _base_url(intercom: Intercom) -> str:
    """Return the address in its normal spelling: two spellings of one must share a budget."""
    return normal_url(intercom.base_url or BASE_URLS[intercom.region])


def client_of(intercom: Intercom, tokens: int = 1) -> IntercomClient:
    """Build the client of an access token, to be entered as a context.

    ``tokens`` is the number of access tokens that share this process's file descriptors.
    """
    return IntercomClient(
        _base_url(intercom),
        intercom.access_token.reveal(),
        renewed=intercom.access_token.reveal_again,
        timeout_s=intercom.timeout_s,
        connections=most_calls(intercom, tokens),
    )


def most_calls(intercom: Intercom, tokens: int) -> int:
    """Return the most calls in flight that this process has file descriptors for."""
    return min(intercom.max_in_flight, share_of_descriptors(0.25 / tokens))


def amplitude_client_of(relay: RelaySettings) -> AmplitudeClient:
    """Build the client of a relay, to be entered as a context."""
    return AmplitudeClient(
        address_of(relay),
        legacy_url=None if relay.base_url else LEGACY_URLS[relay.region],
        timeout_s=relay.timeout_s,
        connections=relay.connections,
    )


def address_of(relay: RelaySettings) -> str:
    """Return the address that a relay sends to, in its normal spelling."""
    return normal_url(relay.base_url or INGESTION_URLS[relay.region])


class GateSettings(NamedTuple):
    """The settings of a sync that its gate is built by; the first sync of a token decides."""

    requests_per_minute: int
    max_in_flight: int
    timeout_s: float
    token_source: str
    probe_first_s: float
    probe_most_s: float


def gate_settings_of(sync: Sync) -> GateSettings:
    """Return the part of a sync's settings that its gate is built by."""
    return GateSettings(
        sync.intercom.requests_per_minute,
        sync.intercom.max_in_flight,
        sync.intercom.timeout_s,
        sync.intercom.access_token.source,
        sync.delivery.probe_first_s,
        sync.delivery.probe_most_s,
    )
