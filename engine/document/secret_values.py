"""The secrets in a table of settings, by the types of the settings.

Rules
=====
1. A value is a secret if its setting's type is ``Secret``.
2. So is each text without a known type: the arguments of a source, a key that is not known, a
   value of another shape than its setting's. It may be a token at a misspelled key.
3. ``env:NAME`` and ``file:PATH`` are names, and ``*`` among API keys is no key: they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin

import msgspec

from amplitude_intercom.engine.document.tables import Path, Table, leaves
from amplitude_intercom.engine.setting_types import ANY_KEY, Secret
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.toml_text import RENAMED

MASK: Final = "***"
LEAST_WITH_END: Final = 12
"""Characters from which on the end of a key may be seen: the rest is longer than the end."""


class SecretValue(NamedTuple):
    """A secret, or the name of one. ``seen_at_end``: how many of its last characters may be seen.

    ``value`` is a text, or another value that stands where one is expected.
    """

    path: Path
    value: Any
    seen_at_end: int = 0

    @property
    def shown(self) -> Any:
        """The form that people may see: a name as it is, else ``***``, of a key with its end."""
        if self.is_open:
            return self.value
        return MASK + self.end

    @property
    def is_open(self) -> bool:
        """Whether it is no secret itself."""
        is_any = self.seen_at_end > 0 and self.value == ANY_KEY
        return is_any or is_reference(self.value)

    @property
    def end(self) -> str:
        """The last characters, as far as people may see them."""
        if not self.seen_at_end or not isinstance(self.value, str):
            return ""
        end = self.value[-self.seen_at_end :]
        is_plain = end.isascii() and end.isalnum()
        return end if is_plain and len(self.value) >= LEAST_WITH_END else ""


def is_reference(value: object) -> bool:
    """Return whether a value names a secret: ``env:NAME`` or ``file:PATH``."""
    return isinstance(value, str) and value.startswith(("env:", "file:"))


def secret_values(table: Table, kind: Any = Settings) -> Iterator[SecretValue]:
    """Yield the secrets of a table, which need not be right; ``kind`` is its type."""
    yield from _secret_values(kind, table, (), whole=False)


def whole_secret_values(table: Table, kind: Any = Settings) -> Iterator[SecretValue]:
    """Yield the secrets as ``secret_values`` does, each whole, though it be a list or a table."""
    yield from _secret_values(kind, table, (), whole=True)


def _secret_values(kind: Any, value: Any, path: Path, *, whole: bool) -> Iterator[SecretValue]:
    for member in _members(kind):
        if _struct(member) and isinstance(value, dict):
            types = _types(member)
            for key, inner in value.items():
                yield from _secret_values(types.get(key, Any), inner, (*path, key), whole=whole)
            return
        if get_origin(member) is dict and isinstance(value, dict):
            for key, inner in value.items():
                yield from _secret_values(get_args(member)[1], inner, (*path, key), whole=whole)
            return
        if get_origin(member) is list and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from _secret_values(get_args(member)[0], inner, (*path, index), whole=whole)
            return
    yield from _without_shape(kind, value, path, whole=whole)


def _without_shape(kind: Any, value: Any, path: Path, *, whole: bool) -> Iterator[SecretValue]:
    """Yield the secrets of a value that is no table or list of the expected shape."""
    members = list(_members(kind))
    is_secret = Secret in _deep(kind)
    if Secret in members and whole:
        yield SecretValue(path, value, _seen_at_end(kind))
        return
    expects_text = any(member not in (Any, Secret) and not _holds(member) for member in members)
    if expects_text and not isinstance(value, dict | list):
        return
    for inside, leaf in leaves(value, path):
        if is_secret or isinstance(leaf, str):
            yield SecretValue(inside, leaf, _seen_at_end(kind))


def _members(kind: Any) -> Iterator[Any]:
    """Yield the types that a type is one of, without bounds and without ``None``."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _members(get_args(kind)[0])
    elif origin in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    elif kind is not type(None):
        yield kind


def _struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _holds(kind: Any) -> bool:
    """Whether values of a type are tables or lists."""
    return _struct(kind) or get_origin(kind) in (dict, list)


def _seen_at_end(kind: Any) -> int:
    if get_origin(kind) is not Annotated:
        return 0
    extras = (meta.extra or {} for meta in get_args(kind)[1:] if isinstance(meta, msgspec.Meta))
    return max((extra.get("seen_at_end", 0) for extra in extras), default=0)


@cache
def _types(struct: Any) -> dict[str, Any]:
    """Return the types of a struct's settings, by the names that they have in the file."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


class KeyNames(NamedTuple):
    """The names of all settings, without their sections: of secrets, and of others only."""

    secret: frozenset[str]
    other: frozenset[str]


@cache
def key_names() -> KeyNames:
    """Return the names of settings. Former names count as the settings that replaced them."""
    secret: set[str] = set()
    other: set[str] = set()
    for path, is_secret in _settings(Settings, ""):
        (secret if is_secret else other).add(path.rpartition(".")[2])
        formers = [former for former, now in RENAMED.items() if now == path]
        (secret if is_secret else other).update(former.rpartition(".")[2] for former in formers)
    return KeyNames(frozenset(secret), frozenset(other - secret))


def _settings(kind: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield each setting inside a type, and whether it is a secret or of no known type."""
    for member in _members(kind):
        if _struct(member):
            for key, inner in _types(member).items():
                here = f"{path}.{key}".removeprefix(".")
                secret = {Any, Secret} & set(_deep(inner))
                yield here, bool(secret) and not any(map(_struct, _deep(inner)))
                yield from _settings(inner, here)
        elif get_origin(member) in (dict, list):
            yield from _settings(get_args(member)[-1], path)


def _deep(kind: Any) -> Iterator[Any]:
    """Yield the types that a type is made of."""
    for member in _members(kind):
        yield member
        if get_origin(member) in (dict, list):
            yield from _deep(get_args(member)[-1])


def is_mask(value: object) -> bool:
    """Return whether a value stands for a secret."""
    return isinstance(value, str) and value.startswith(MASK)
