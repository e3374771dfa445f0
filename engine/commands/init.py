"""``init``: a few questions or flags, tried out at once, and a commented settings file of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec

from amplitude_intercom.engine import config
from amplitude_intercom.engine.commands.init_flags import (
    AMPLITUDE_KEY,
    INTERCOM_TOKEN,
    AskedSecret,
    Flags,
    is_reference,
    secret_path,
)
from amplitude_intercom.engine.commands.init_interview import Interview
from amplitude_intercom.engine.commands.init_text import Answers, settings_text
from amplitude_intercom.engine.commands.running import OK
from amplitude_intercom.engine.commands.staging import NewFile, refuse_folder, written
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
    folder = path.absolute().parent
    _refuse_path(path, flags)
    interview = Interview(folder, flags)
    _refuse_secrets(folder, flags, interview.secrets_to_store())
    answers, secrets = _with_secrets_in_files(interview.answers(), folder)
    with written([*secrets, NewFile(path, settings_text(answers))]):
        config.load(path)
    for secret in secrets:
        say(f"wrote {secret.path.relative_to(folder)} (only you can read it)")
    say(f"wrote {path}")
    option = "" if path == Path("amplitude-intercom.toml") else f" -c {shlex.quote(str(path))}"
    say("next:")
    say(f"  amplitude-intercom check{option}")
    say(f"  amplitude-intercom run{option}")
    return OK


# --- before the first question ------------------------------------------------------------


def _refuse_path(path: Path, flags: Flags) -> None:
    """Refuse a path before any question.

    Raises:
        SettingsError: a file is there, or none can be written there.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        what = "is no folder" if os.path.lexists(folder) else "no such folder"
        raise SettingsError(f"{folder}: {what}")
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}") from None
    else:
        if not flags.force:
            raise SettingsError(f"{path}: exists; --force writes over it")
    _refuse_folder(folder)


def _refuse_folder(folder: Path) -> None:
    try:
        refuse_folder(folder)
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written to: {error.strerror}") from None


def _refuse_secrets(folder: Path, flags: Flags, secrets: Iterable[AskedSecret]) -> None:
    """Refuse a place for secrets that will need a file of their own.

    Raises:
        SettingsError: there can be no file, or there is another one, which stays without --force.
    """
    for secret in secrets:
        target = folder / secret_path(secret)
        there = next(path for path in (target.parent, *target.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise SettingsError(f"{there}: is no folder; secrets that are typed in are kept there")
        _refuse_folder(there)
        if target.is_dir():
            raise SettingsError(f"{target}: is a folder")
        given = flags.of(secret)
        if given and not flags.force and target.is_file() and not _holds(target, given):
            text = f"exists, with another value than {secret.flag}; --force writes over it"
            raise SettingsError(f"{target}: {text}")


def _holds(path: Path, secret: str) -> bool:
    try:
        return path.read_text("utf-8").strip() == secret.strip()
    except (OSError, ValueError):
        return False


# --- files --------------------------------------------------------------------------------


def _with_secrets_in_files(answers: Answers, folder: Path) -> tuple[Answers, list[NewFile]]:
    """Return the answers with secrets that are spelled out in files instead, and these files."""
    files = []
    for secret, field in ((AMPLITUDE_KEY, "amplitude_key"), (INTERCOM_TOKEN, "intercom_token")):
        value = getattr(answers, field)
        if is_reference(value):
            continue
        file = secret_path(secret, answers.layout.data_dir)
        files.append(NewFile(folder / file, f"{value}\n", mode=0o600))
        answers = msgspec.structs.replace(answers, **{field: f"file:{file}"})
    return answers, files
