"""``init``: a few questions or flags, tried out at once, and a commented settings file of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from amplitude_intercom.engine import config
from amplitude_intercom.engine.commands.init_flags import (
    AMPLITUDE_KEY,
    INTERCOM_TOKEN,
    Flags,
    secret_path,
)
from amplitude_intercom.engine.commands.init_interview import Interview
from amplitude_intercom.engine.commands.init_text import Answers, settings_text
from amplitude_intercom.engine.commands.running import OK
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import SettingsError


def init(path: Path, flags: Flags) -> int:
    """Write a settings file; what the flags leave open is asked for on a terminal.

    Raises:
        SettingsError: the file exists, an answer is missing and cannot be asked for, or one is
            refused.
        OSError: a file cannot be read or written.
        BadFile: the sample cannot be read.
    """
    _refuse_path(path, flags)
    answers = Interview(path.absolute().parent, flags).answers()
    answers, stored = _with_secrets_in_files(answers, path)
    try:
        _write(path, settings_text(answers))
    except BaseException:
        for name in stored:
            (path.absolute().parent / name).unlink()
        raise
    config.load(path)
    for name in stored:
        say(f"wrote {name} (only you can read it)")
    say(f"wrote {path}")
    option = "" if path == Path("amplitude-intercom.toml") else f" -c {path}"
    say("next:")
    say(f"  amplitude-intercom check{option}")
    say(f"  amplitude-intercom run{option}")
    return OK


def _refuse_path(path: Path, flags: Flags) -> None:
    """Refuse a path before any question.

    Raises:
        SettingsError: a file is there, or none can be written there.
    """
    if os.path.lexists(path) and not flags.force:
        raise SettingsError(f"{path}: exists; --force writes over it")
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{folder}: cannot be written to")


# --- files --------------------------------------------------------------------------------


def _with_secrets_in_files(answers: Answers, path: Path) -> tuple[Answers, list[str]]:
    """Store secrets that are spelled out; return the answers that name their files, and these."""
    stored = []
    for secret, field in ((AMPLITUDE_KEY, "amplitude_key"), (INTERCOM_TOKEN, "intercom_token")):
        value = getattr(answers, field)
        if value.startswith(("env:", "file:")):
            continue
        file = secret_path(secret, answers.layout.data_dir)
        target = path.absolute().parent / file
        for made in (target.parent.parent, target.parent):
            made.mkdir(exist_ok=True, mode=0o700)
        _write(target, f"{value}\n", mode=0o600)
        answers = msgspec.structs.replace(answers, **{field: f"file:{file}"})
        stored.append(file)
    return answers, stored


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole or not at all; nobody else can read it meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
