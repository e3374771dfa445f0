"""Reading and checking the settings: a TOML file, or a table, to ``Settings`` or a message.

Each problem is named by its key. ``env:NAME`` and ``file:PATH`` fetch secrets.
"""

from __future__ import annotations

import os
import re
import select
import stat
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec

from amplitude_intercom.engine.did_you_mean import did_you_mean
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.setting_types import PATTERNS_IN_WORDS, Secret
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.settings_problems import home_expanded, problems
from amplitude_intercom.engine.toml_text import RENAMED, read_toml

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
"""A settings file: a thousand syncs take one megabyte."""

MAX_SECRET_BYTES: Final = 65_536
"""A file with a secret; headers beyond this are refused everywhere."""


def load(path: Path) -> Settings:
    """Read and check a settings file. Relative paths in it start at the file's own folder; those of
    a pipe at the working directory.

    Raises:
        SettingsError: the file cannot be read, or something in it cannot be used.
    """
    return load_written(path).settings


class Written(NamedTuple):
    """Checked settings, and the table of their file, in which nothing is filled in."""

    settings: Settings
    table: dict[str, Any]


def load_written(path: Path) -> Written:
    """Read and check a settings file as ``load`` does; return its table too.

    Raises:
        SettingsError: as ``load``.
    """
    table = _table_at(path)
    folder = path.parent if path.is_file() else Path()  # a pipe's folder is `/dev/fd`
    return Written(from_table(table, folder=folder, origin=f"{path}: "), table)


def _table_at(path: Path) -> dict[str, Any]:
    """Return the table of a settings file.

    Raises:
        SettingsError: the file cannot be read, or is no TOML.
    """
    try:
        return read_toml(_read(path, MAX_FILE_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    except (ValueError, RecursionError) as error:  # NUL in the path, digits or depth without end
        raise SettingsError(f"{path}: cannot be read: {str(error).partition(':')[0]}") from None


PIPE_S: Final = 30.0
"""Until a pipe has to be at its end: ``-c <(sops -d …)`` may ask a key server."""

NOBODY_S: Final = 0.3
"""Until somebody has to be there who writes to a pipe."""


def _read(path: Path, most: int) -> bytes:
    """Return the content of a regular file or a pipe; other kinds could be endless.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of at most ``most`` bytes, or none can be called so.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:  # refuses a directory
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise ValueError("not a regular file")
        content = file.read(most + 1) if stat.S_ISREG(mode) else _read_pipe(descriptor, most)
    if len(content) > most:
        raise ValueError(f"larger than {most} bytes")
    return content


def _read_pipe(descriptor: int, most: int, within_s: float = PIPE_S) -> bytes:
    """Return the content of a pipe; more than ``most`` bytes if there are more.

    Raises:
        ValueError: nobody writes to it, or not to its end in time.
    """
    pipe = select.poll()
    pipe.register(descriptor, select.POLLIN)
    block: bytes | None
    content, until_s, wait_s = b"", time.monotonic() + within_s, NOBODY_S
    while len(content) <= most and wait_s > 0:
        ready = pipe.poll(wait_s * 1_000)
        try:
            block = os.read(descriptor, most + 1 - len(content))
        except BlockingIOError:  # somebody is there, and has not written yet
            block = None
        if block == b"" and not ready:
            raise ValueError("a pipe that nobody writes to")
        if block == b"":
            return content
        content += block or b""
        wait_s = until_s - time.monotonic()
    if len(content) <= most:
        raise ValueError(f"a pipe that has not come to its end within {within_s:g} s")
    return content


def from_table(table: dict[str, Any], *, folder: Path | None = None, origin: str = "") -> Settings:
    """Check a table of settings, as ``tomllib`` gives it.

    Raises:
        SettingsError: naming the key's path and what was expected.
    """
    folder = folder or Path()
    try:
        settings = msgspec.convert(
            table, Settings, dec_hook=lambda kind, value: _decode_secret(kind, value, folder)
        )
        problem = next(problems(settings), None)
        if problem:
            raise SettingsError(origin + problem)
        sources = {
            name: _with_secrets(arguments, folder, f"sources.{name}")
            for name, arguments in settings.sources.items()
        }
        data_dir = str(folder / home_expanded(settings.data_dir))
    except msgspec.ValidationError as error:
        raise SettingsError(origin + _explain(error, table)) from None
    except RecursionError:
        raise SettingsError(f"{origin}sources: nested too deeply") from None
    except ValueError as error:
        raise SettingsError(f"{origin}{error}") from None
    return msgspec.structs.replace(settings, data_dir=data_dir, sources=sources)


def _with_secrets(value: Any, folder: Path, where: str) -> Any:
    """Return a source's arguments with a ``Secret`` for each ``env:NAME`` and ``file:PATH``."""
    if isinstance(value, dict):
        return {k: _with_secrets(v, folder, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_with_secrets(v, folder, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str) or not value.startswith(("env:", "file:")):
        return value
    try:
        return _decode_secret(Secret, value, folder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def with_secrets_revealed(value: Any) -> Any:
    """Return a source's arguments as it takes them, each ``Secret`` being its text."""
    if isinstance(value, dict):
        return {k: with_secrets_revealed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_secrets_revealed(v) for v in value]
    return value.reveal() if isinstance(value, Secret) else value


def _decode_secret(kind: type, value: object, folder: Path) -> Secret:
    if kind is not Secret:
        raise NotImplementedError(kind)
    if not isinstance(value, str) or not value:
        raise ValueError("Expected non-empty text, `env:NAME` or `file:PATH`")
    scheme, _, rest = value.partition(":")
    if scheme == "env":
        return Secret(_from_environment(rest), value)
    if scheme == "file":
        path = folder / home_expanded(rest)
        return Secret(_from_file(path), value, lambda: _from_file(path))
    return Secret(usable_secret(value))


def usable_secret(text: str, of: str = "this one") -> str:
    """Return a secret without the white space around it, which editors and shells leave there.

    Raises:
        ValueError: it cannot be the value of a header; the message does not quote it.
    """
    stripped = text.strip()
    if not stripped:
        raise ValueError(f"Expected a secret, {of} is empty")
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError(
            "Expected a secret that can be sent in a header, in ASCII and without control "
            f"characters; {of} is not"
        )
    return stripped


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"Expected the environment variable `{name}` to be set")
    return usable_secret(value, f"the environment variable `{name}`")


def _from_file(path: Path) -> str:
    try:
        value = _read(path, MAX_SECRET_BYTES).decode()
    except UnicodeDecodeError:
        raise ValueError(f"Expected a readable file `{path}`: not UTF-8") from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"Expected a readable file `{path}`: {said}") from None
    return usable_secret(value, f"the file `{path}`")


_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)


def _explain(error: msgspec.ValidationError, table: dict[str, Any]) -> str:
    """Turn msgspec's ``… - at `$.sync[0].users` `` into ``sync[0].users: …``."""
    match = _PATH.match(str(error))
    if match is None:
        return str(error)
    what = match["what"]
    path = _keys_named(match["path"] or "", what, table)
    for pattern, words in PATTERNS_IN_WORDS.items():
        what = what.replace(f"`str` matching regex {pattern!r}", words)
    if what.startswith("Invalid enum value"):
        what = f"{what}; Expected one of {_choices(path)}"
    what += _shape_meant(path, what)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown:
        what += _instead_of(path, unknown[1])
    return f"{path}: {what}" if path else what


def _shape_meant(path: str, what: str) -> str:
    """Return how a table is written that was written otherwise; empty: nothing is known of it."""
    if path in ("sync", "relay") and what == "Expected `array`, got `object`":
        return f"; write [[{path}]], with two brackets: there may be several"
    if re.fullmatch(r"sync\[\d+\]\.events\.select\[\d+\]", path) and what.endswith("got `str`"):
        return '; write { types = ["…"] } with the event types in it'
    return ""


_UNNAMED_KEY: Final = "[...]"
"""How msgspec spells a key of a mapping that may have any."""


def _keys_named(path: str, what: str, table: dict[str, Any]) -> str:
    """Return a path with the key that is wrong where msgspec says `[...]`."""
    path = path.lstrip(".")
    before, found, after = path.partition(_UNNAMED_KEY)
    if not found:
        return path
    wanted = str if "Expected `str`" in what and not after else dict
    inside: Any = table
    for name in re.findall(r"[^.\[\]]+", before):
        inside = inside[int(name)] if isinstance(inside, list) else inside[name]
    wrong = next((key for key, value in inside.items() if not isinstance(value, wanted)), "…")
    return f"{before}.{wrong}{after}"


def _instead_of(path: str, key: str) -> str:
    """Return a hint at the key that may have been meant."""
    section = re.sub(r"\[\d+\]", "", path)
    renamed = RENAMED.get(f"{section}.{key}".lstrip("."))
    if renamed:
        return f"; use `{renamed}`"
    known = [field.encode_name for field in msgspec.structs.fields(_struct_at(path))]
    return did_you_mean(key, known) or f"; there are {', '.join(known)}"


def _choices(path: str) -> str:
    """Return the values that the field at a path can have."""
    section, _, name = path.rpartition(".")
    fields = msgspec.structs.fields(_struct_at(section))
    kind = next(field.type for field in fields if field.encode_name == name)
    return ", ".join(f"`{value}`" for value in _literals(kind))


def _literals(kind: Any) -> Iterator[Any]:
    """Yield the values of a ``Literal``, which may be one of several types."""
    for inner in get_args(kind):
        if get_args(inner):
            yield from _literals(inner)
        elif inner is not type(None):
            yield inner


def _struct_at(path: str) -> Any:
    """Return the struct that the table at a path is read as."""
    kind: Any = Settings
    for name in re.findall(r"[^.\[\]]+", path):
        if not name.isdecimal():
            kind = next(f.type for f in msgspec.structs.fields(kind) if f.encode_name == name)
            kind = next(k for k in _inside(kind) if hasattr(k, "__struct_fields__"))
    return kind


def _inside(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield kind
    for inner in get_args(kind):
        yield from _inside(inner)
