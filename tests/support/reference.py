"""Recorded traffic and descriptions of the outside: an excerpt, and all of it where it is at hand.

The whole collection lies beside the project, in ``../shared/data``, and is too large to be part of
it. ``tests/fixtures`` has as much of each as shows that the tests work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

FIXTURES = Path(__file__).parents[1] / "fixtures"
WHOLE = Path(__file__).parents[2].parent / "shared" / "data"

REQUESTS = FIXTURES / "amplitude-requests"
"""Requests of Amplitude's own clients, byte for byte."""


def export_rows() -> dict[int, bytes]:
    """Return rows of an Export by their numbers in the whole sample, which has 60."""
    whole = WHOLE / "amplitude-export-sample.jsonl"
    if whole.exists():
        return dict(enumerate(whole.read_bytes().splitlines(), 1))
    lines = (FIXTURES / "amplitude-export-excerpt.tsv").read_bytes().splitlines()
    return {int(number): row for number, _, row in (line.partition(b"\t") for line in lines)}


def exchanges() -> list[dict[str, Any]]:
    """Return what was asked of the real Intercom in 2021, and what it answered."""
    whole = WHOLE / "intercom-recorded-exchanges.jsonl"
    path = whole if whole.exists() else FIXTURES / "intercom-exchanges-excerpt.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def api_description() -> dict[str, Any]:
    """Return Intercom's API description 2.16, as OpenAPI has it."""
    whole = WHOLE / "intercom-openapi-2.16.yaml"
    if whole.exists():
        text = whole.read_text(encoding="utf-8")
        loaded: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return loaded
    excerpt: dict[str, Any] = json.loads((FIXTURES / "intercom-openapi-excerpt.json").read_text())
    return excerpt
