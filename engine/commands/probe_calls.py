"""The calls of a probe, and the test contacts that they make.

Rules
=====
1. What was made is known at every moment: the ids of contacts, and the external ids of creates that
   were not answered. Those are random, so that they find no contact but a probe's own.
2. ``clean_up`` archives all of that. ``left`` is what is not known to be archived.
3. An answer is one that the API describes for its call, or there is none. A refused token, no
   answer at all, or a rate limit that stays used up ends a probe; all else ends a question.
4. A 429 is waited for, until the reset that it names, ``MOST_PAUSES`` times in a row at most.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Final, Literal

import anyio
import msgspec

from amplitude_intercom.engine.commands import probe_answers as words
from amplitude_intercom.engine.delivery.calls import endpoint_of, is_failure
from amplitude_intercom.engine.delivery.pace import pause_s
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, RateHeaders, Request, Wire

PREFIX: Final = "amplitude-intercom-probe-"
"""What external ids and e-mails of test contacts begin with."""

DOMAIN: Final = "example.com"
"""Of the made-up e-mails: reserved, nobody gets mail there (RFC 2606)."""

MOST_PAUSES: Final = 3
"""For answers 429 in a row; ``delivery.pace`` bounds each."""

TRIES_AFTER_S: Final = (0.0, 0.5, 1.0)
"""Pauses before tries to archive a contact, or to find one whose create was not answered."""

REMEDIES: Final = {
    401: "give `intercom.access_token` one that is valid",
    403: "grant the access token what it lacks, in Intercom's Developer Hub, or see to the plan",
}


class NoResult(Exception):
    """A question of a probe has no result; the text says why.

    ``status``: of the answer that there was; 0: none. ``level``: of the finding that it becomes.
    """

    def __init__(
        self, text: str, status: int = 0, level: Literal["error", "warning"] = "error"
    ) -> None:
        super().__init__(text)
        self.status = status
        self.level = level


class Ended(NoResult):
    """A probe cannot go on: its other calls would fare likewise."""


class ProbeCalls:
    """Calls of one probe; see the module's rules."""

    def __init__(self, wire: Wire, now_s: Callable[[], float]) -> None:
        """``now_s``: Unix time in seconds; a pause after a 429 is reckoned by it."""
        self.rates: list[RateHeaders] = []
        """The rate headers of all answers, in order; those that lack one are left out."""
        self.external_id = f"{PREFIX}{secrets.token_hex(8)}"
        """The first test contact's; others append something to it."""
        self.email = f"{self.external_id}@{DOMAIN}"
        self.ids: set[str] = set()
        """The ids of all contacts that were made, archived or not."""
        self._wire = wire
        self._now_s = now_s
        self._live: dict[str, str] = {}
        self._unanswered: set[str] = set()

    async def ask(self, request: Request) -> Answer:
        """Return Intercom's answer: 2xx or 4xx.

        Raises:
            NoResult: it is another's, or says that the call failed, or is not permitted.
            Ended: there is none, the token is refused, or the rate limit stays used up.
        """
        call = endpoint_of(request.method, request.path)
        answer = await self._answer(request, call)
        for _ in range(MOST_PAUSES):
            if answer.status != 429:
                return _judged(request, answer, call)
            await anyio.sleep(pause_s(answer, self._now_s()))
            answer = await self._answer(request, call)
        if answer.status == 429:
            text = f"{call}: Intercom still answers 429 after {MOST_PAUSES} pauses"
            raise Ended(f"{text}: stop who else calls with this token, and probe again", 429)
        return _judged(request, answer, call)

    async def _answer(self, request: Request, call: str) -> Answer:
        try:
            answer = await self._wire.send(request)
        except NoAnswer as error:
            raise Ended(f"{call} has no answer: {error}") from None
        rate = intercom.parse_rate(answer.headers)
        if None not in (rate.limit, rate.remaining, rate.reset_at_s):
            self.rates.append(rate)
        return answer

    # --- test contacts --------------------------------------------------------------------

    async def create(self, suffix: str = "", email: str = "") -> Answer:
        """Try to make a test contact, unsubscribed from e-mails; return 2xx or 4xx.

        Cancelled, it may have been made: ``clean_up`` looks for it.

        Raises:
            NoResult, Ended: as ``ask``; it may have been made.
        """
        external_id = self.external_id + suffix
        body = {"role": "user", "external_id": external_id, "name": "amplitude-intercom probe"}
        body |= {"email": email} if email else {}
        encoded = msgspec.json.encode({**body, "unsubscribed_from_emails": True})
        self._unanswered.add(external_id)
        try:
            answer = await self.ask(intercom.create_contact(encoded))
        except NoResult as error:
            if error.status in (401, 403, 429):
                self._unanswered.discard(external_id)
            raise
        if answer.status < 300 and not self._note_live(answer, external_id):
            raise NoResult("POST /contacts: the answer is about another contact", answer.status)
        self._unanswered.discard(external_id)
        return answer

    def _note_live(self, answer: Answer, external_id: str) -> bool:
        """Take in a contact that is there; False: it is none of this probe's.

        A contact made before may be answered again, brought back by a shared e-mail or id.
        """
        contact_id = str(answer.contact["id"])
        if answer.contact.get("external_id") != external_id and contact_id not in self.ids:
            return False
        self._live[contact_id] = external_id
        self.ids.add(contact_id)
        return True

    async def archive(self) -> str:
        """Archive all contacts that were made; return why not, for one of those that are left."""
        trouble = ""
        for contact_id in list(self._live):
            why = await self._archive(contact_id)
            trouble = trouble or why
            if not why:
                del self._live[contact_id]
        return trouble

    async def _archive(self, contact_id: str) -> str:
        why = ""
        for wait_s in TRIES_AFTER_S:
            await anyio.sleep(wait_s)
            try:
                answer = await self.ask(intercom.archive_contact(contact_id))
            except NoResult as error:
                why = str(error)
                continue
            if answer.status < 300 or answer.status == 404:  # somebody has deleted it
                return ""
            why = words.said(answer)
        return why

    async def clean_up(self) -> None:
        """Archive all that was made, or may have been; never fails. Cancelled, some is left."""
        for external_id in sorted(self._unanswered):
            await self._find(external_id)
        await self.archive()

    async def _find(self, external_id: str) -> None:
        """Look for a contact after a create without an answer."""
        for wait_s in TRIES_AFTER_S:
            await anyio.sleep(wait_s)
            try:
                answer = await self.ask(intercom.find_contact(external_id))
            except NoResult:
                continue
            if answer.status < 300 and self._note_live(answer, external_id):
                self._unanswered.discard(external_id)
                return

    @property
    def left(self) -> Iterator[Finding]:
        """Contacts that may not be archived, by id, or by external id where no id is known."""
        for contact_id, external_id in self._live.items():
            text = f"the test contact with id {contact_id} (external id {external_id}) is left"
            yield Finding("error", words.LEFT, f"{text}: archive it in Intercom by hand")
        for external_id in sorted(self._unanswered):
            text = (
                f"a test contact with external id {external_id} may be left: its create was not"
                " answered, and it cannot be found; look for it in Intercom"
            )
            yield Finding("error", words.LEFT, text)


def _judged(request: Request, answer: Answer, call: str) -> Answer:
    """Return an answer that is Intercom's own, and no failure.

    Raises:
        NoResult, Ended: it is not.
    """
    status = answer.status
    if status in REMEDIES:
        ending = Ended if status == 401 else NoResult
        raise ending(f"{call}: Intercom answers {words.said(answer)}: {REMEDIES[status]}", status)
    if is_failure(status) and intercom.is_error_list(answer):
        raise NoResult(f"{call}: Intercom answers {words.said(answer)}", status)
    if is_failure(status) or not intercom.is_intercoms(request, answer):
        kind = answer.headers.get("content-type", "").partition(";")[0] or "no content type"
        came = intercom.as_text(f"{status} {kind[:64]}")
        raise NoResult(f"{call}: it answered, but not as Intercom does: {came}", status)
    return answer
