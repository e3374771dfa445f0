"""Recorded traffic and descriptions of the outside: excerpts, in ``tests/fixtures``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "fixtures"

REQUESTS = FIXTURES / "amplitude-requests"
"""Requests of Amplitude's own clients, byte for byte."""


def export_rows() -> dict[int, bytes]:
    """Return 15 rows of an Export, among them broken ones, by their numbers in it."""
    lines = (FIXTURES / "amplitude-export-excerpt.tsv").read_bytes().splitlines()
    return {int(number): row for number, _, row in (line.partition(b"\t") for line in lines)}


def exchanges() -> list[dict[str, Any]]:
    """Return what was asked of the real Intercom in 2021, and what it answered."""
    text = (FIXTURES / "intercom-exchanges-excerpt.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def api_description() -> dict[str, Any]:
    """Return Intercom's API description 2.16, as OpenAPI has it: the calls that are made here."""
    text = (FIXTURES / "intercom-openapi-excerpt.json").read_text(encoding="utf-8")
    excerpt: dict[str, Any] = json.loads(text)
    return excerpt
