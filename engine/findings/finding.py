"""A finding: something about a setting that a person should know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """Something about a setting: an ``error`` will not work, a ``warning`` may surprise.

    A ``fact`` is the result of a probe.
    """

    level: Literal["error", "warning", "fact"]
    key: str
    text: str


def placed(where: str, findings: Iterable[Finding]) -> list[Finding]:
    """Return findings under the key of the table that they are about."""
    return [msgspec.structs.replace(f, key=f"{where}.{f.key}") for f in findings]
