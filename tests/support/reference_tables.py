"""The generated parts of ``engine/REFERENCE.md``, worked out from the code's own tables.

``python tests/support/reference_tables.py`` writes them anew; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import typer
from msgspec import inspect

from amplitude_intercom.engine import cli, metrics, settings
from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.admin_server import AdminServer
from amplitude_intercom.engine.console.api_v1.every import operations
from amplitude_intercom.engine.console.api_v1.operations import Operation
from amplitude_intercom.engine.console.help_pages import help_routes
from amplitude_intercom.engine.console.monitoring import MonitorPaths
from amplitude_intercom.engine.console.problems import STATUSES, ProblemType
from amplitude_intercom.engine.delivery.gate import State
from amplitude_intercom.engine.metrics_text import kind_of
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason, DropReason
from amplitude_intercom.engine.relay.host import RelayState
from amplitude_intercom.engine.settings_meanings import MEANINGS
from amplitude_intercom.transports.reasons import NoAnswerCause, Reason, RefusalReason

REFERENCE: Final = Path(__file__).parents[2] / "engine" / "REFERENCE.md"

_HARDLY_A_BOUND: Final = 10_000_000
"""Upper bounds from here on are left out of the tables."""

_SAID_ONCE: Final = "config"
"""The parameter of nearly every command that the prose explains."""

Rows = Iterable[tuple[str, ...]]


def table(*head: str, rows: Rows) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(line)} |\n" for line in (head, *rows)]
    return "".join([lines[0], "|" + "---|" * len(head) + "\n", *lines[1:]])


# --- settings -----------------------------------------------------------------------------


def _settings_text() -> str:
    return "\n".join(
        f"### `{heading}`\n\n" + table("key", "value", "default", "meaning", rows=rows)
        for heading, rows in _sections(inspect.type_info(settings.Settings), "")
    )


def settings_keys() -> list[str]:
    """Return the path of every setting."""
    sections = _sections(inspect.type_info(settings.Settings), "")
    return [row[0].strip("`") for _, rows in sections for row in rows]


def _sections(struct: Any, path: str) -> Iterator[tuple[str, Rows]]:
    """Yield each section's heading and rows, those inside of it behind it."""
    prefix = f"{path}." if path else ""
    inner, rows = [], []
    for field in struct.fields:
        name = f"{prefix}{field.encode_name}"
        section = _section(field.type)
        if section is not None:
            inner.append((section, name))
        else:
            rows.append((f"`{name}`", _kind(field.type), _default(field), MEANINGS[name]))
    if rows:
        yield _heading(path), rows
    for section, name in inner:
        yield from _sections(section, name)


def _heading(path: str) -> str:
    """Return how the settings file spells a section."""
    if not path:
        return "top of the file"
    return f"[[{path}]]" if path in ("sync", "relay") else f"[{path}]"


def _section(kind: Any) -> Any:
    """Return the section that a field holds, holds a list of, or may hold; None: a plain value."""
    for candidate in (kind, getattr(kind, "item_type", None), *getattr(kind, "types", ())):
        if isinstance(candidate, inspect.StructType) and issubclass(
            candidate.cls, settings.Section
        ):
            return candidate
    return None


def _kind(kind: Any) -> str:
    """Return in words which values a setting takes."""
    if isinstance(kind, inspect.UnionType):
        return _kind(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
    if isinstance(kind, inspect.Metadata):
        return _kind(kind.type)
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        word = "whole number" if isinstance(kind, inspect.IntType) else "number"
        low = f"over {kind.gt:,}" if kind.gt is not None else f"from {kind.ge:,}"
        bounded = kind.le is not None and kind.le < _HARDLY_A_BOUND
        return f"{word} {low} to {kind.le:,}" if bounded else f"{word} {low}"
    words: dict[type[Any], str] = {
        inspect.BoolType: "`true`, `false`",
        inspect.ListType: "list",
        inspect.DictType: "table",
        inspect.CustomType: "secret",
    }
    known: type[Any] = type(kind)
    return words.get(known, "text")


def _default(field: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        default = msgspec.json.encode(field.default_factory(), enc_hook=lambda s: s.source)
        return f"`{default.decode()}`"
    if field.default is msgspec.NODEFAULT:
        return "required"
    return "–" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"


# --- commands -----------------------------------------------------------------------------


def _commands_text() -> str:
    return "\n".join(
        f"### `{usage}`\n\n{command.help}\n{_parameters(command)}" for usage, command in commands()
    )


def commands() -> Iterator[tuple[str, Any]]:
    """Yield how each command is called, and the command; those of a group one by one."""
    root: Any = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        for sub, inner in getattr(command, "commands", {"": command}).items():
            arguments = [_argument(one) for one in inner.params if one.param_type_name != "option"]
            yield " ".join(filter(None, (name, sub, *arguments))), inner


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.removesuffix("_")).upper()
    name += "…" if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _parameters(command: Any) -> str:
    rows = []
    for one in command.params:
        if one.name == _SAID_ONCE:
            continue
        if one.param_type_name != "option":
            name = _argument(one)
        else:
            name = ", ".join([*one.opts, *one.secondary_opts])
            name += "" if one.is_flag else f" {one.metavar or 'VALUE'}"
        assert one.help, f"{command.name}: {one.name} has no help"
        rows.append((f"`{name}`", one.help + _shown_default(one)))
    return f"\n{table('argument', 'is', rows=rows)}" if rows else ""


def _shown_default(parameter: Any) -> str:
    default = parameter.default
    if isinstance(default, bool) or not isinstance(default, str | int | float) or default == "":
        return ""
    return f" Default: `{default}`."


# --- the admin port, metrics, reasons -----------------------------------------------------


def _api_text() -> str:
    """Return the admin port's paths; each one's sentence is the docstring of its handler."""
    nothing: Any = None  # no handler is called
    access = AdminAccess(settings.Admin(), nothing)
    monitors = MonitorPaths(nothing)
    server = AdminServer(access, [*monitors.routes(), *help_routes()])
    routes = server._application().router.routes()
    rows = [
        (f"`{route.method} {route.resource.canonical}`", _sentence(route.handler.__doc__))
        for route in routes
        if route.resource is not None and route.method != "HEAD"
    ]
    return table("call", "answer", rows=rows)


def _api_v1_text() -> str:
    """Return the operations of the API, with the fields that each takes; `?`: may be left out."""
    nothing: Any = None  # no handler is called
    engine: Any = SimpleNamespace(spool=None)
    rows = [
        (f"`{one.method} {API_ROOT}{one.path}`", _taken(one), _first_sentence(one.summary))
        for one in operations(engine, nothing, nothing, nothing)
    ]
    return table("call", "takes", "does", rows=rows)


def _taken(one: Operation) -> str:
    """Return the fields and headers that an operation takes."""
    info = inspect.type_info(one.takes)
    assert isinstance(info, inspect.StructType)
    names = [f"`{field.encode_name}{'' if field.required else '?'}`" for field in info.fields]
    names += ["`If-Match`"] * one.needs_match + ["`Idempotency-Key?`"] * one.takes_key
    return ", ".join(names) or "–"


def _first_sentence(summary: str) -> str:
    assert summary, "an operation has no docstring"
    return summary.partition(". ")[0].rstrip(".") + "."


def _sentence(docstring: str | None) -> str:
    assert docstring, "a handler of the admin port has no docstring"
    return " ".join(docstring.split("\n\n")[0].split())


def _problems_text() -> str:
    rows = [(f"`{kind}`", str(STATUSES[kind]), kind.means, kind.remedy) for kind in ProblemType]
    return table("type", "status", "is", "what to do", rows=rows)


def _metrics_text() -> str:
    rows = [
        (f"`{name}`", kind_of(name, metrics.HISTOGRAMS), text)
        for name, text in metrics.METRICS.items()
    ]
    return table(f"metric (`{metrics.PREFIX}…`)", "kind", "is", rows=rows)


def _reasons_text(reasons: type[Reason]) -> str:
    rows = [(f"`{one}`", one.means, one.remedy or "–") for one in reasons]
    return table("word", "means", "what to do", rows=rows)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "settings": _settings_text,
    "commands": _commands_text,
    "admin port": _api_text,
    "API": _api_v1_text,
    "problems": _problems_text,
    "metrics": _metrics_text,
    "drop reasons": lambda: _reasons_text(DropReason),
    "dead-letter reasons": lambda: _reasons_text(DeadReason),
    "adjustments": lambda: _reasons_text(AdjustmentReason),
    "refusal reasons": lambda: _reasons_text(RefusalReason),
    "no-answer causes": lambda: _reasons_text(NoAnswerCause),
    "health": lambda: _reasons_text(State),
    "relay health": lambda: _reasons_text(RelayState),
}
"""The generated parts by the name in their marker."""


def rewritten(paper: str) -> str:
    """Return the paper with each generated part as the code has it now."""
    for name, text in PARTS.items():
        before, start, behind = paper.partition(f"<!-- generated: {name} -->\n")
        _, end, after = behind.partition("<!-- end -->")
        assert start, name
        assert end, name
        paper = f"{before}{start}\n{text()}\n{end}{after}"
    return paper


if __name__ == "__main__":
    REFERENCE.write_text(rewritten(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
