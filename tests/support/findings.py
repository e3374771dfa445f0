"""Settings that findings are about."""

from __future__ import annotations

from typing import Any

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.settings import Settings


def sync(name: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "amplitude_api_keys": ["key-1"],
        "intercom": {"access_token": "t"},
        **more,
    }


def settings(*syncs: dict[str, Any], **top: Any) -> Settings:
    return from_table({"sync": list(syncs or (sync(),)), **top})


def texts(findings: list[Finding]) -> list[str]:
    return [f"{finding.level} {finding.key}: {finding.text}" for finding in findings]


HTTP = {"http": {"listen": "127.0.0.1:8710"}}
