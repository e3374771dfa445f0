"""The answers that ``init`` writes: from flags, variables, existing files and questions.

Intercom and Amplitude are asked at once whether they take the answers, unless it is offline. Where
one does not answer, the user decides: again, untried, or another secret. No region is guessed: it
is the one that takes the secret, or it is given.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from amplitude_intercom.engine.commands import init_asking as asking
from amplitude_intercom.engine.commands.init_choices import Choices
from amplitude_intercom.engine.commands.init_flags import (
    AMPLITUDE_KEY,
    INTERCOM_TOKEN,
    AskedSecret,
    Flags,
    drafted,
    is_reference,
    secret_path,
)
from amplitude_intercom.engine.commands.init_text import Answers, Server
from amplitude_intercom.engine.commands.init_trials import Service, Trial, TrialProblem
from amplitude_intercom.engine.commands.relays import ask_amplitude
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.workspace_asking import ask_intercom
from amplitude_intercom.engine.findings.workspace_findings import workspace_findings
from amplitude_intercom.transports.amplitude_client import INGESTION_URLS
from amplitude_intercom.transports.intercom import BASE_URLS

INTERCOM, AMPLITUDE = (
    Service("Intercom workspace", "--region", "--intercom-url", tuple(BASE_URLS)),
    Service("Amplitude project", "--amplitude-region", "--amplitude-url", tuple(INGESTION_URLS)),
)


class Interview:
    """Collects the answers from flags, variables, existing files and questions."""

    def __init__(self, folder: Path, flags: Flags) -> None:
        """``folder``: of the settings file; relative paths start there."""
        self._folder = folder
        self._flags = flags
        self._asks = asking.is_terminal() and not flags.yes
        self._known: KnownAttributes | None = None

    def secrets_to_store(self) -> list[AskedSecret]:
        """Return the secrets that will get a file, as far as that is known before the questions."""
        there = {s: self._flags.of(s) or self._found(s) for s in (AMPLITUDE_KEY, INTERCOM_TOKEN)}
        return [s for s, at in there.items() if (not is_reference(at) if at else self._asks)]

    def answers(self) -> Answers:
        """Return all answers, the live ones tried out.

        Raises:
            SettingsError, OSError, BadFile: as ``init``.
        """
        self._refuse_contradictions()
        self._refuse_missing()
        unknown = "unknown"  # until it is answered
        made = Answers(amplitude_key=unknown, intercom_token=unknown, relay=None)
        made = self._amplitude(self._intercom(made))
        made = Choices(self._folder, self._flags, self._known, asks=self._asks).added(made)
        drafted(made, self._folder)
        return made

    def _refuse_contradictions(self) -> None:
        flags = self._flags
        for service, region, url in (
            (INTERCOM, flags.region, flags.intercom_url),
            (AMPLITUDE, flags.amplitude_region, flags.amplitude_url),
        ):
            if region is not None and url is not None:
                raise SettingsError(f"{service.region_flag} and {service.url_flag}: give one")

    def _refuse_missing(self) -> None:
        """Refuse what nobody can be asked for.

        Raises:
            SettingsError: something is missing; the message names all of it.
        """
        flags = self._flags
        missing = [
            f"{s.flag} (or the variable {s.variable})"
            for s in (AMPLITUDE_KEY, INTERCOM_TOKEN)
            if not flags.of(s) and not self._found(s)
        ]
        if flags.offline and not (flags.region or flags.intercom_url):
            missing.append(f"{INTERCOM.region_flag} ({INTERCOM.choices})")
        where = flags.amplitude_region or flags.amplitude_url
        if flags.offline and flags.relay is not False and not where:
            missing.append(f"{AMPLITUDE.region_flag} ({AMPLITUDE.choices}) or --no-relay")
        if missing and not self._asks:
            why = "--yes asks nothing" if flags.yes else "there is no terminal to ask on"
            raise SettingsError(f"{why}: give {', and '.join(missing)}")

    def _found(self, secret: AskedSecret) -> str:
        """Return where a secret is already, as settings spell it; empty: nowhere."""
        if os.environ.get(secret.variable):
            return f"env:{secret.variable}"
        file = secret_path(secret)
        return f"file:{file}" if (self._folder / file).is_file() else ""

    def _secret(self, secret: AskedSecret, trial: Trial) -> Answers:
        """Return the draft with a secret that is taken, or that the user wants untried.

        Raises:
            SettingsError: it is refused, and nobody can be asked.
        """
        flag = self._flags.of(secret)
        value = flag or self._found(secret)
        where = f"{secret.flag if flag else value}: "
        while not (value and trial.takes(value)):
            problem = trial.problem if value else None
            if problem and not self._asks:
                hint = "" if problem.is_judged else "; --offline asks nobody"
                raise SettingsError(f"{where}{problem.text}{hint}")
            if problem:
                asking.tell(f"{where}{problem.text}{'; once more' if problem.is_judged else ''}")
            if problem and not problem.is_judged:
                decision = asking.ask_about_silence()
                if decision == "again":
                    continue
                if decision == "untried":
                    return trial.untried(value)
            where = ""
            value = asking.ask_needed(secret.called, is_public=secret.is_public)
        return trial.draft

    # --- Intercom -------------------------------------------------------------------------

    def _intercom(self, made: Answers) -> Answers:
        flags = self._flags

        def draft(token: str, host: Server) -> Answers:
            return msgspec.structs.replace(made, intercom_token=token, intercom=host)

        hosts = self._hosts(INTERCOM, flags.region, flags.intercom_url)
        found = self._secret(INTERCOM_TOKEN, Trial(INTERCOM, hosts, draft, self._asked_intercom))
        if self._known is not None and found.intercom.url is None:
            asking.tell(f"Intercom takes the token; region {found.intercom.region}")
        return found

    def _asked_intercom(self, draft: Answers) -> TrialProblem | None:
        """Ask the workspace for the problem with a draft, and keep its attributes."""
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return TrialProblem(str(error), is_judged=True)
        if self._flags.offline:
            return None
        [sync] = settings.sync
        said = asyncio.run(ask_intercom(sync))
        self._known = said.known
        return _error([*workspace_findings(sync, said, time.time())])

    # --- Amplitude ------------------------------------------------------------------------

    def _amplitude(self, made: Answers) -> Answers:
        flags = self._flags
        wants_relay = flags.relay
        if wants_relay is None and self._asks:
            asking.tell("An SDK has one endpoint: if it is this daemon, Amplitude gets its events")
            asking.tell("only through a relay.")
            wants_relay = asking.ask_whether("Pass requests on to Amplitude?")

        def draft(key: str, host: Server) -> Answers:
            relay = None if wants_relay is False else host
            return msgspec.structs.replace(made, amplitude_key=key, relay=relay)

        hosts = [Server()]
        if wants_relay is not False:
            hosts = self._hosts(AMPLITUDE, flags.amplitude_region, flags.amplitude_url)
        return self._secret(AMPLITUDE_KEY, Trial(AMPLITUDE, hosts, draft, self._asked_amplitude))

    def _asked_amplitude(self, draft: Answers) -> TrialProblem | None:
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return TrialProblem(str(error), is_judged=True)
        if self._flags.offline or not settings.relay:
            return None
        return _error(asyncio.run(ask_amplitude(settings, settings.relay[0])))

    # --- hosts -----------------------------------------------------------------------------

    def _hosts(self, service: Service, region: str | None, url: str | None) -> list[Server]:
        """Return the hosts that may be the right one, of which the first that takes it is."""
        if url is not None:
            return [Server(url=url)]
        if region is None and self._flags.offline:
            region = service.asked_region()
        return [Server(name) for name in ([region] if region else service.regions)]


OF_SECRETS = ("intercom.access_token", "amplitude_api_keys")
"""The settings in findings of somebody who has judged the secret."""


def _error(findings: Sequence[Finding]) -> TrialProblem | None:
    """Return the first error among findings, if there is one."""
    errors = (TrialProblem(f.text, f.key in OF_SECRETS) for f in findings if f.level == "error")
    return next(errors, None)
