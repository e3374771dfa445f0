"""Tables of settings for forms: a secret is shown by its origin, and taken back.

Rules
=====
1. A secret is shown as ``{"from": "env:NAME"}``, or ``{"set": true}`` where it is spelled out. In a
   list ``at`` is its index, which brings it back. An API key of Amplitude has its ``end``.
2. A form gives a secret in the same way, or as a text: then it was typed, and the person knows it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

from amplitude_intercom.engine.document.refusals import CannotKeep
from amplitude_intercom.engine.document.secret_values import (
    SecretValue,
    is_mask,
    is_reference,
    secret_values,
    whole_secret_values,
)
from amplitude_intercom.engine.document.tables import Path, Table, refuse_deep, written
from amplitude_intercom.engine.settings import Settings, Sync


class KeptSync(NamedTuple):
    """A ``[[sync]]`` table with its secrets, and those that the person typed; not to be shown."""

    table: Table
    typed: frozenset[str]

    def __repr__(self) -> str:
        return "KeptSync(***)"


def shown(table: Table) -> Table:
    """Return a table of settings as it may be shown."""
    return _shown(table, Settings)


def shown_sync(sync: Table) -> Table:
    """Return the table of one ``[[sync]]`` as ``shown`` shows it."""
    return _shown(sync, Sync)


def _shown(table: Table, kind: Any) -> Table:
    copy = deepcopy(table)
    for secret in secret_values(table, kind):
        _put(copy, secret.path, _form(secret))
    return copy


def _form(secret: SecretValue) -> Any:
    if is_reference(secret.value):
        return {"from": secret.value}
    if secret.is_open:
        return secret.value
    form: Table = {"set": True}
    if isinstance(secret.path[-1], int):
        form["at"] = secret.path[-1]
    if secret.end:
        form["end"] = secret.end
    return form


def sync_with_secrets_kept(form: Table, present: Table | None) -> KeptSync:
    """Return the table of one ``[[sync]]`` that a form gives, with the secrets that it keeps.

    A secret of the form is as ``shown`` has it, or a text that was typed. ``present`` is the table
    that the sync of this name has now; None: there is none.

    Raises:
        CannotKeep: a secret is kept that is not there, or is given in no such form.
        NotToml: the form is nested too deeply.
    """
    refuse_deep(form)
    table = deepcopy(form)
    typed = set()
    for secret in list(whole_secret_values(form, Sync)):
        value = _given(secret, present or {})
        _put(table, secret.path, value)
        if secret.value == value and not secret.is_open:
            typed.add(value)
    return KeptSync(table, frozenset(typed))


def _given(secret: SecretValue, present: Table) -> str:
    match secret.value:
        case {"from": str() as source, **rest} if not rest and is_reference(source):
            return source
        case {"set": True, **rest} if set(rest) <= {"at", "end"}:
            at = rest.get("at")
            path = (*secret.path[:-1], at) if isinstance(at, int) else secret.path
            return _there(secret, present, path)
        case str() as text if text and not is_mask(text):
            return text
    raise CannotKeep(
        f"sync.{written(secret.path)}",
        'Expected a secret that is typed, {"from": "env:NAME"}, or {"set": true} to keep it',
    )


def _there(secret: SecretValue, present: Table, path: Path) -> str:
    value: Any = present
    try:
        for key in path:
            value = value[key]
    except (LookupError, TypeError):
        value = None
    if not isinstance(value, str):
        raise CannotKeep(
            f"sync.{written(secret.path)}", "its secret is kept, and there is none: type it"
        )
    return value


def _put(table: Any, path: Path, value: Any) -> None:
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
