"""``deploy``: the files to run the daemon by systemd, in a container, or in Kubernetes."""

from __future__ import annotations

from pathlib import Path

from amplitude_intercom.engine.commands.init_text import Answers, settings_text
from amplitude_intercom.engine.commands.running import OK, USAGE, complain
from amplitude_intercom.engine.commands.staging import NewFile, written
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.deploy.targets import TARGETS
from amplitude_intercom.engine.did_you_mean import did_you_mean
from amplitude_intercom.engine.errors import SettingsError

EXAMPLE = Answers(
    amplitude_key="env:AMPLITUDE_API_KEY",
    intercom_token="env:INTERCOM_ACCESS_TOKEN",  # noqa: S106 - names a variable
)
"""The settings where no file is given."""


def deploy(target: str, config: Path | None, folder: Path | None, *, force: bool) -> int:
    """Print the files of a target, or write them into a folder; exits 2 where there is none such.

    ``config``: the settings file that they are for. It is not changed: the target gets a copy that
    fits, and stderr says what is different in it.

    Raises:
        SettingsError: the settings cannot be used there, or a file exists already.
        OSError: a file cannot be written.
    """
    make = TARGETS.get(target)
    if make is None:
        hint = did_you_mean(target, TARGETS) or ""
        return complain(
            f"there is no target `{target}`{hint}; there is {', '.join(TARGETS)}", USAGE
        )
    try:
        files, adapted = make(_text(config))
    except SettingsError as error:
        raise SettingsError(f"{config}: {error}") from None
    if config is not None:
        for change in adapted.changes:
            say(f"note: in {target}'s settings: {change}", stderr=True)
    if folder is None:
        print("\n".join(_with_name(name, text, files) for name, text in files.items()), end="")
    else:
        _write(files, folder, force=force)
    return OK


def _text(config: Path | None) -> str:
    if config is None:
        return settings_text(EXAMPLE)
    try:
        return config.read_text("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError("not UTF-8") from None


def _with_name(name: str, text: str, files: dict[str, str]) -> str:
    """Return a text behind its file's name, where there are several."""
    return f"# --- {name} ---\n{text}" if len(files) > 1 else text


def _write(files: dict[str, str], folder: Path, *, force: bool) -> None:
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise SettingsError(f"{folder / there[0]}: exists; --force writes over it")
    folder.mkdir(parents=True, exist_ok=True)
    with written([NewFile(folder / name, text) for name, text in files.items()]):
        pass
    for name in files:
        say(f"wrote {folder / name}", stderr=True)
