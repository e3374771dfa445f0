"""The README's reference tables, worked out from the code.

``python tests/support/readme_tables.py`` writes them into the README.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from amplitude_intercom.engine import metrics, settings
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason, DropReason
from amplitude_intercom.transports.reasons import Reason

README = Path(__file__).parents[2] / "README.md"

Rows = list[list[str]]


def settings_rows(struct: Any = settings.Settings, prefix: str = "") -> Rows:
    """Return key, default and meaning of every setting."""
    rows = []
    for field in msgspec.structs.fields(struct):
        inner = _section(field.type)
        path = f"{prefix}{field.encode_name}"
        if inner is not None:
            rows += settings_rows(inner, f"{path}.")
        else:
            rows.append([f"`{path}`", _default(field), settings.MEANINGS[path]])
    return rows


def _section(kind: Any) -> Any:
    for candidate in (kind, *get_args(kind), *(a for t in get_args(kind) for a in get_args(t))):
        if isinstance(candidate, type) and issubclass(candidate, settings.Section):
            return candidate if candidate is not settings.Rename else None
    return None


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        default = msgspec.json.encode(field.default_factory(), enc_hook=lambda s: s.source)
        return f"`{default.decode()}`"
    if field.default is msgspec.NODEFAULT:
        return "required"
    return "–" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"


def _reason_rows(reasons: Iterable[Reason]) -> Rows:
    return [[f"`{reason}`", reason.means] for reason in reasons]


def tables() -> dict[str, tuple[Sequence[str], Rows]]:
    """Return head and rows of each table, by the name of the marker before it."""
    dead = [[f"`{reason}`", reason.means, reason.remedy] for reason in DeadReason]
    return {
        "settings-table": (("key", "default", "meaning"), settings_rows()),
        "adjust-table": (("adjustment", "means"), _reason_rows(AdjustmentReason)),
        "drop-table": (("reason", "means"), _reason_rows(DropReason)),
        "dead-table": (("reason", "means", "what to do"), dead),
        "metrics-table": (
            ("metric (`amplitude_intercom_…`)", "is"),
            [[f"`{name}`", text] for name, text in metrics.METRICS.items()],
        ),
    }


def as_text(head: Sequence[str], rows: Rows) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(line)} |\n" for line in (head, *rows)]
    return "".join([lines[0], "|" + "---|" * len(head) + "\n", *lines[1:]])


def rewritten(readme: str) -> str:
    """Return a README with each table as it is to be."""
    for name, (head, rows) in tables().items():
        before, marker, behind = readme.partition(f"<!-- {name} -->\n")
        assert marker, name
        readme = before + marker + as_text(head, rows) + re.sub(r"\A(?:\|.*\n)*", "", behind)
    return readme


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
