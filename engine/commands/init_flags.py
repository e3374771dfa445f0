"""The flags of ``init``, its two secrets, and the settings that a draft of the answers means."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from amplitude_intercom.engine import config
from amplitude_intercom.engine.commands.init_text import Answers, settings_text
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Settings


class AskedSecret(msgspec.Struct, frozen=True):
    """One of the two secrets: its flag, its variable, its file, and what the questions call it."""

    flag: str
    variable: str
    file: str
    called: str
    is_public: bool = False
    """Whether others see it anyway, as in the page of a browser's SDK."""


AMPLITUDE_KEY: Final = AskedSecret(
    "--amplitude-key",
    "AMPLITUDE_API_KEY",
    "amplitude-api-key",
    "API key of the Amplitude project (Settings → Projects)",
    is_public=True,
)
INTERCOM_TOKEN: Final = AskedSecret(
    "--intercom-token",
    "INTERCOM_ACCESS_TOKEN",
    "intercom-access-token",
    "Intercom access token (Developer Hub → your app → Authentication)",
)


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags. None: not given."""

    amplitude_key: str | None = None
    intercom_token: str | None = None
    region: str | None = None
    intercom_url: str | None = None
    amplitude_region: str | None = None
    amplitude_url: str | None = None
    relay: bool | None = None
    sample: str | None = None
    events: Sequence[str] = ()
    metadata: Sequence[str] = ()
    properties: Sequence[str] = ()
    offline: bool = False
    yes: bool = False
    force: bool = False

    def of(self, secret: AskedSecret) -> str | None:
        """Return the flag of a secret, if it is given."""
        return self.amplitude_key if secret is AMPLITUDE_KEY else self.intercom_token


def secret_path(secret: AskedSecret, data_dir: str = "data") -> str:
    """Return where a secret is kept that was typed in, from the folder of the settings."""
    return f"{data_dir}/secrets/{secret.file}"


def is_reference(value: str) -> bool:
    """Whether a secret is spelled as the place where it is."""
    return value.startswith(("env:", "file:"))


def drafted(answers: Answers, folder: Path) -> Settings:
    """Return the settings of answers.

    Raises:
        SettingsError: an answer cannot be used.
    """
    text = settings_text(answers)
    if not _is_unicode(text):
        raise SettingsError("an answer has characters of another encoding than UTF-8")
    return config.from_table(tomllib.loads(text), folder=folder)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 has all characters: arguments stand for bytes that are none by others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
