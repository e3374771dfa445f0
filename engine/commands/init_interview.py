"""The answers that ``init`` writes: from flags, variables, existing files and questions.

Intercom and Amplitude are asked at once whether they take the answers, unless it is offline.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from amplitude_intercom.engine.commands import init_asking as asking
from amplitude_intercom.engine.commands.findings import Finding
from amplitude_intercom.engine.commands.init_choices import Choices
from amplitude_intercom.engine.commands.init_flags import (
    AMPLITUDE_KEY,
    INTERCOM_TOKEN,
    Credential,
    Flags,
    drafted,
    secret_path,
)
from amplitude_intercom.engine.commands.init_text import Answers, Server
from amplitude_intercom.engine.commands.relays import ask_amplitude
from amplitude_intercom.engine.commands.workspace_findings import ask_intercom
from amplitude_intercom.engine.delivery.attributes import KnownAttributes
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.transports.amplitude_client import INGESTION_URLS
from amplitude_intercom.transports.intercom import BASE_URLS


class Interview:
    """Collects the answers from flags, variables, existing files and questions."""

    def __init__(self, folder: Path, flags: Flags) -> None:
        """``folder``: of the settings file; relative paths start there."""
        self._folder = folder
        self._flags = flags
        self._asks = asking.is_terminal() and not flags.yes
        self._known: KnownAttributes | None = None

    def answers(self) -> Answers:
        """Return all answers, the live ones tried out.

        Raises:
            SettingsError, OSError, BadFile: as ``init``.
        """
        self._refuse_missing()
        unknown = "unknown"  # until it is answered
        made = Answers(amplitude_key=unknown, intercom_token=unknown, relay=None)
        made = self._amplitude(self._intercom(made))
        made = Choices(self._folder, self._flags, self._known, asks=self._asks).added(made)
        drafted(made, self._folder)
        return made

    def _refuse_missing(self) -> None:
        given = (
            (AMPLITUDE_KEY, self._flags.amplitude_key),
            (INTERCOM_TOKEN, self._flags.intercom_token),
        )
        missing = [s for s, value in given if value is None and not self._found(s)]
        if missing and not self._asks:
            named = " and ".join(f"{s.flag} (or the variable {s.variable})" for s in missing)
            raise SettingsError(f"there is no terminal to ask on: give {named}")

    def _found(self, secret: Credential) -> str:
        """Return where a secret is already, as settings spell it; empty: nowhere."""
        if os.environ.get(secret.variable):
            return f"env:{secret.variable}"
        file = secret_path(secret)
        return f"file:{file}" if (self._folder / file).is_file() else ""

    def _secret(self, secret: Credential, flag: str | None, problem: Callable[[str], str]) -> str:
        """Return a secret that there is no problem with.

        Raises:
            SettingsError: there is one, and nobody can be asked.
        """
        there = flag or self._found(secret)
        if there:
            wrong = problem(there)
            if not wrong:
                return there
            where = secret.flag if flag else there
            if not self._asks:
                hint = "; --offline asks nobody" if "does not answer" in wrong else ""
                raise SettingsError(f"{where}: {wrong}{hint}")
            asking.tell(f"{where}: {wrong}")
        asked = asking.ask if secret.is_public else asking.ask_secret
        return asking.until_taken(lambda: asked(secret.called), problem)

    # --- Intercom -------------------------------------------------------------------------

    def _intercom(self, made: Answers) -> Answers:
        flags = self._flags
        if flags.intercom_url is not None:
            hosts = [Server(url=flags.intercom_url)]
        elif flags.offline and flags.region is None and self._asks:
            hosts = [Server(self._region("Region of the Intercom workspace", BASE_URLS))]
        else:
            regions = list(BASE_URLS) if not flags.offline else ["us"]
            hosts = [Server(region) for region in ([flags.region] if flags.region else regions)]
        found = made

        def problem(token: str) -> str:
            nonlocal found
            wrong = ""
            for host in hosts:
                found = msgspec.structs.replace(made, intercom_token=token, intercom=host)
                error = self._asked_intercom(found)
                if not error:
                    return ""
                wrong = wrong or error
            return wrong

        self._secret(INTERCOM_TOKEN, flags.intercom_token, problem)
        if not flags.offline and found.intercom.url is None:
            asking.tell(f"Intercom takes the token; region {found.intercom.region}")
        return found

    def _region(self, question: str, regions: Iterable[str]) -> str:
        names = list(regions)
        while (region := asking.ask(f"{question} ({', '.join(names)})", names[0])) not in names:
            asking.tell(f"there is no region {region}")
        return region

    def _asked_intercom(self, draft: Answers) -> str:
        """Ask the workspace; return its refusal, or an empty text, and keep its attributes."""
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return str(error)
        if self._flags.offline:
            return ""
        findings, self._known = asyncio.run(ask_intercom(settings.sync[0]))
        return _error(findings)

    # --- Amplitude ------------------------------------------------------------------------

    def _amplitude(self, made: Answers) -> Answers:
        flags = self._flags
        wants_relay = flags.relay
        if wants_relay is None and self._asks:
            asking.tell("An SDK has one endpoint: if it is this daemon, Amplitude gets its events")
            asking.tell("only through a relay.")
            wants_relay = asking.ask_whether("Pass requests on to Amplitude?")
        hosts = [Server(region) for region in INGESTION_URLS]
        if flags.amplitude_url is not None:
            hosts = [Server(url=flags.amplitude_url)]
        elif flags.offline and wants_relay and self._asks:
            hosts = [Server(self._region("Region of the Amplitude project", INGESTION_URLS))]
        found = made

        def problem(key: str) -> str:
            nonlocal found
            wrong = ""
            for host in hosts:
                relay = host if wants_relay is not False else None
                found = msgspec.structs.replace(made, amplitude_key=key, relay=relay)
                error = self._asked_amplitude(found)
                if not error:
                    return ""
                wrong = wrong or error
            return wrong

        self._secret(AMPLITUDE_KEY, flags.amplitude_key, problem)
        return found

    def _asked_amplitude(self, draft: Answers) -> str:
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return str(error)
        if self._flags.offline or not settings.relay:
            return ""
        return _error(asyncio.run(ask_amplitude(settings, settings.relay[0])))


def _error(findings: Sequence[Finding]) -> str:
    """Return the text of the first error among findings; empty: there is none."""
    return next((f.text for f in findings if f.level == "error"), "")
