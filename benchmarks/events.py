"""Events in the form of Amplitude's browser SDK, 675 bytes each, and settings for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Settings

API_KEY = "benchmark-key"
EVENT_BYTES = 675
PLANS = ("free", "pro", "team")
NOWHERE = "http://127.0.0.1:9"
"""An address at which no server listens."""

SELECTED = "Purchase Completed"
UNSELECTED = "Page Viewed"


def event(n: int, user: int, event_type: str = SELECTED, size_bytes: int = EVENT_BYTES) -> bytes:
    """Return an event as JSON; the same arguments give the same bytes."""
    fields: dict[str, Any] = {
        "user_id": f"user-{user:08}",
        "device_id": f"0a1b2c3d-4e5f-6789-abcd-{user:012}",
        "event_type": event_type,
        "time": 1_700_000_000_000 + n * 1_000,
        "insert_id": f"5f2b7c1e-0000-4000-8000-{n:012}",
        "session_id": 1_700_000_000_000,
        "library": "amplitude-ts/2.11.1",
        "platform": "Web",
        "language": "fi-FI",
        "ip": "192.0.2.17",
        "country": "Finland",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/131.0 Safari/537",
        "event_properties": {
            "item": "newsletter",
            "price": 19.99,
            "quantity": n % 7,
            "currency": "EUR",
            "path": "/shop/newsletter/checkout",
            "gift": False,
        },
        "user_properties": {"plan": "pro", "seats": 12},
    }
    if size_bytes < EVENT_BYTES:
        del fields["user_agent"], fields["ip"]
    short = len(msgspec.json.encode(fields))
    fields["event_properties"]["padding"] = "x" * max(0, size_bytes - short - len(',"padding":""'))
    return msgspec.json.encode(fields)


def events(
    count: int,
    seed: int,
    event_type: str = SELECTED,
    users: int = 10_000,
    size_bytes: int = EVENT_BYTES,
) -> list[bytes]:
    """Return ``count`` events of random users, in order of time."""
    dice = random.Random(seed)
    return [event(n, dice.randrange(users), event_type, size_bytes) for n in range(count)]


def identify(user: int, plan: str, number: int, **more: str) -> dict[str, Any]:
    """Return an identify that sets ``plan`` and ``more``."""
    properties = {"plan": plan, **more}
    return _of(user, "$identify", number) | {"user_properties": {"$set": properties}}


def purchase(user: int, number: int) -> dict[str, Any]:
    """Return a selected event of a few bytes."""
    return _of(user, SELECTED, number) | {"event_properties": {"quantity": number % 5}}


def _of(user: int, event_type: str, number: int) -> dict[str, Any]:
    return {
        "user_id": f"user-{user:08}",
        "event_type": event_type,
        "insert_id": str(number),
        "time": 1_700_000_000_000 + number * 1_000,
    }


def write_lines(path: Path, lines: list[bytes]) -> None:
    """Write a file of events, one a line."""
    path.write_bytes(b"\n".join(lines) + b"\n")


def table(folder: Path, base_url: str = NOWHERE, **more: Any) -> dict[str, Any]:
    """Return the settings of one sync, which sends all ``SELECTED``; ``more``: its other keys."""
    return {
        "data_dir": str(folder / "data"),
        "log": {"level": "error"},
        "http": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "sync": [
            {
                "name": "benchmark",
                "amplitude_api_keys": [API_KEY],
                "intercom": {
                    "access_token": "benchmark-token",
                    "base_url": base_url,
                    "requests_per_minute": 50_000_000,
                },
                "users": {"properties": ["plan", "seats"]},
                "events": {
                    "select": [{"types": [SELECTED]}],
                    "metadata": ["item", "price", "quantity", "path", "plan"],
                },
                **more,
            }
        ],
    }


def settings(folder: Path, base_url: str = NOWHERE, **more: Any) -> Settings:
    """Return ``table`` as checked settings."""
    return from_table(table(folder, base_url, **more))


def checked(found: dict[str, Any]) -> Settings:
    """Return a table as checked settings."""
    return from_table(found)
