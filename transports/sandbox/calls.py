"""A call that was let in, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Call(NamedTuple):
    """A call on its way to a route; ``key`` is the variable part of its path."""

    at_s: float
    body: bytes
    query: str
    key: str


class Done(NamedTuple):
    """The answer to a call, and its outcome for the journal."""

    status: int
    body: bytes
    outcome: str
    contact_id: str = ""
    headers: Mapping[str, str] = {}


def done(body: object, outcome: str, contact_id: str = "") -> Done:
    """Return a 200 with a JSON body."""
    return Done(200, msgspec.json.encode(body), outcome, contact_id)
