"""The answers that ``init`` writes: from flags, the environment, a sample, and questions.

Intercom and Amplitude are asked at once whether they take what was answered, unless it is offline.
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from amplitude_intercom.engine import config
from amplitude_intercom.engine.commands import init_asking as asking
from amplitude_intercom.engine.commands.findings import Finding
from amplitude_intercom.engine.commands.init_sample import MOST_METADATA, Sample, is_of_sdk
from amplitude_intercom.engine.commands.init_text import Answers, Host, settings_text
from amplitude_intercom.engine.commands.relays import ask_amplitude
from amplitude_intercom.engine.commands.sample import MAX_SAMPLE, read_events
from amplitude_intercom.engine.commands.workspace import ask_intercom
from amplitude_intercom.engine.delivery.attributes import KnownAttributes
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.rules.contacts import STANDARD_TYPES
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.amplitude_client import INGESTION_URLS
from amplitude_intercom.transports.intercom import BASE_URLS

MOST_PROPERTIES: Final = 100
"""Properties that can be picked from a list."""


class Credential(msgspec.Struct, frozen=True):
    """One of the two secrets: its flag, its variable, its file, and what the questions call it."""

    flag: str
    variable: str
    file: str
    called: str
    is_public: bool = False
    """Whether others see it anyway, as in the page of a browser's SDK."""


AMPLITUDE_KEY: Final = Credential(
    "--amplitude-key",
    "AMPLITUDE_API_KEY",
    "amplitude-api-key",
    "API key of the Amplitude project (Settings → Projects)",
    is_public=True,
)
INTERCOM_TOKEN: Final = Credential(
    "--intercom-token",
    "INTERCOM_ACCESS_TOKEN",
    "intercom-access-token",
    "Intercom access token (Developer Hub → your app → Authentication)",
)


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The flags. None: not given."""

    amplitude_key: str | None = None
    intercom_token: str | None = None
    region: str | None = None
    intercom_url: str | None = None
    amplitude_url: str | None = None
    relay: bool | None = None
    sample: str | None = None
    events: Sequence[str] = ()
    metadata: Sequence[str] = ()
    properties: Sequence[str] = ()
    offline: bool = False
    yes: bool = False
    force: bool = False


def secret_path(secret: Credential, data_dir: str = "data") -> str:
    """Return where a secret is kept that was typed in, from the folder of the settings."""
    return f"{data_dir}/secrets/{secret.file}"


class Interview:
    """Works out the answers: from flags, the environment, what is there already, and questions."""

    def __init__(self, folder: Path, given: Given) -> None:
        """``folder``: of the settings file; relative paths start there."""
        self._folder = folder
        self._given = given
        self._asks = asking.is_terminal() and not given.yes
        self._known: KnownAttributes | None = None

    def answers(self) -> Answers:
        """Return all answers, the live ones tried out.

        Raises:
            SettingsError, OSError, BadFile: as ``init``.
        """
        self._refuse_missing()
        made = Answers(amplitude_key="unknown", intercom_token="unknown", relay=None)  # noqa: S106
        made = self._intercom(made)
        made = self._selection(self._amplitude(made))
        drafted(made, self._folder)
        return made

    def _refuse_missing(self) -> None:
        given = (
            (AMPLITUDE_KEY, self._given.amplitude_key),
            (INTERCOM_TOKEN, self._given.intercom_token),
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
        given = self._given
        if given.intercom_url is not None:
            hosts = [Host(url=given.intercom_url)]
        elif given.offline and given.region is None and self._asks:
            hosts = [Host(self._region("Region of the Intercom workspace", BASE_URLS))]
        else:
            regions = list(BASE_URLS) if not given.offline else ["us"]
            hosts = [Host(region) for region in ([given.region] if given.region else regions)]
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

        self._secret(INTERCOM_TOKEN, given.intercom_token, problem)
        if not given.offline and found.intercom.url is None:
            asking.tell(f"Intercom takes the token; region {found.intercom.region}")
        return found

    def _region(self, question: str, regions: Iterable[str]) -> str:
        names = list(regions)
        while (region := asking.ask(f"{question} ({', '.join(names)})", names[0])) not in names:
            asking.tell(f"there is no region {region}")
        return region

    def _asked_intercom(self, draft: Answers) -> str:
        """Ask the workspace; return what is wrong, and keep its attributes."""
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return str(error)
        if self._given.offline:
            return ""
        findings, self._known = asyncio.run(ask_intercom(settings.sync[0]))
        return _error(findings)

    # --- Amplitude ------------------------------------------------------------------------

    def _amplitude(self, made: Answers) -> Answers:
        given = self._given
        wants_relay = given.relay
        if wants_relay is None and self._asks:
            asking.tell("An SDK has one endpoint: if it is this daemon, Amplitude gets its events")
            asking.tell("only through a relay.")
            wants_relay = asking.ask_whether("Pass requests on to Amplitude?")
        hosts = [Host(region) for region in INGESTION_URLS]
        if given.amplitude_url is not None:
            hosts = [Host(url=given.amplitude_url)]
        elif given.offline and wants_relay and self._asks:
            hosts = [Host(self._region("Region of the Amplitude project", INGESTION_URLS))]
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

        self._secret(AMPLITUDE_KEY, given.amplitude_key, problem)
        return found

    def _asked_amplitude(self, draft: Answers) -> str:
        try:
            settings = drafted(draft, self._folder)
        except SettingsError as error:
            return str(error)
        if self._given.offline or not settings.relay:
            return ""
        return _error(asyncio.run(ask_amplitude(settings, settings.relay[0])))

    # --- what is sent ---------------------------------------------------------------------

    def _selection(self, made: Answers) -> Answers:
        """Return the answers with event types, properties and the contacts' identifier."""
        path = self._given.sample
        if path is None and self._asks and not self._given.events:
            asking.tell("")
            asking.tell("Event types and properties can be proposed from events: a file of JSON")
            path = asking.ask("lines, an Export file or .zip (Enter: none)") or None
        sample = Sample() if path is None else Sample(_raws(path))
        if path is not None and not sample.events:
            raise SettingsError(f"--sample: {path} has no events")
        made = msgspec.structs.replace(made, identifier=self._identifier(sample))
        made = msgspec.structs.replace(made, events=self._events(made, sample))
        made = msgspec.structs.replace(made, metadata=self._metadata(made, sample))
        made = msgspec.structs.replace(made, properties=self._properties(made, sample))
        return msgspec.structs.replace(made, create_missing=self._creates(made.properties))

    def _problem(self, made: Answers, field: str) -> Callable[[list[str]], str]:
        """Return a function that says why names cannot be the answers of a field."""

        def problem(names: list[str]) -> str:
            try:
                drafted(msgspec.structs.replace(made, **{field: names}), self._folder)
            except SettingsError as error:
                return str(error)
            return ""

        return problem

    def _events(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._given.events:
            return self._given.events
        marked = [name for name, _ in sample.types if not is_of_sdk(name)]
        rows = [(name, f"{number}×") for name, number in sample.types]
        problem = self._problem(made, "events")
        if self._asks and rows:
            return asking.ask_which("Event types to send", rows, marked, problem)
        if self._asks:
            question = "Event types to send, with commas between (Enter: none yet)"
            return asking.ask_names(question, problem)
        return marked

    def _metadata(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._given.metadata:
            return self._given.metadata
        found = sample.event_properties(made.events)[:MOST_PROPERTIES]
        marked = [p.name for p in found[:MOST_METADATA]]
        rows = [(p.name, asking.facts_of(p)) for p in found]
        if not (self._asks and rows):
            return marked
        problem = self._problem(made, "metadata")
        return asking.ask_which("Event properties to send along", rows, marked, problem)

    def _properties(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._given.properties:
            return self._given.properties
        found = sample.user_properties[:MOST_PROPERTIES]
        marked = [p.name for p in found if self._exists(p.name)]
        rows = [
            (p.name, asking.facts_of(p) + ("" if self._exists(p.name) else "; not in Intercom yet"))
            for p in found
        ]
        if not (self._asks and rows):
            return marked
        problem = self._problem(made, "properties")
        return asking.ask_which("User properties to write", rows, marked, problem)

    def _exists(self, name: str) -> bool:
        """Whether the workspace has an attribute; where it was not asked, it may."""
        return name in STANDARD_TYPES or self._known is None or bool(self._known.type_of(name))

    def _creates(self, properties: Sequence[str]) -> bool:
        missing = [name for name in properties if not self._exists(name)]
        if not (missing and self._asks):
            return False
        return asking.ask_whether(f"Create {', '.join(missing)} in Intercom at the first use?")

    def _identifier(self, sample: Sample) -> str:
        proposed = sample.identifier
        if not (self._asks and proposed == "email"):
            return proposed
        asking.tell(f"{sample.emails} of {sample.user_ids} user ids are e-mail addresses.")
        is_email = asking.ask_whether("Find contacts by e-mail instead of External ID?")
        return "email" if is_email else "external_id"


def drafted(answers: Answers, folder: Path) -> Settings:
    """Return the settings of answers.

    Raises:
        SettingsError: an answer cannot be used.
    """
    return config.from_table(tomllib.loads(settings_text(answers)), folder=folder)


def _error(findings: Sequence[Finding]) -> str:
    """Return the first error among findings, for the one who answered."""
    return next((f.text for f in findings if f.level == "error"), "")


def _raws(path: str) -> Iterator[bytes]:
    for _, _, raw in islice(read_events(path, MAX_EVENT_BYTES), MAX_SAMPLE):
        yield raw
