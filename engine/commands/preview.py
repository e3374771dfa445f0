"""``preview``: what would be sent for each event, without sending anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.actors.filter import Filter
from engine.commands import FAILED, OK, complain
from engine.config import Settings, Sync
from engine.envelope import Plan, Record
from engine.errors import SettingsError
from engine.mapping import Rules, creation_body, event_body
from engine.spool import wall_clock_ms
from engine.user_properties import apply
from transports import files, intercom
from transports.amplitude import BadEvent, decode_head
from transports.errors import Damaged
from transports.intercom import Request


def preview(settings: Settings, path: str, *, sync: str | None = None) -> int:
    """Print one JSON line for each event and sync. Reads ``-`` from standard input.

    Raises:
        SettingsError: no such sync.
        OSError: the file cannot be read.
    """
    syncs = [s for s in settings.sync if sync in (None, s.name)]
    if not syncs:
        raise SettingsError(f"--sync: there is no sync `{sync}`")
    previews = [Preview(s) for s in syncs]
    try:
        for _, line in files.read_lines(_openable(path), settings.forward.max_line_bytes):
            for one in previews:
                sys.stdout.write(msgspec.json.encode(one.of(line.text)).decode() + "\n")
    except Damaged as error:
        return complain(error, FAILED)
    return OK


def _openable(path: str) -> str:
    return "/dev/stdin" if path == "-" else path


class Preview:
    """One sync's answer to "what would happen to this event?": the code of the real thing."""

    def __init__(self, sync: Sync) -> None:
        self._name = sync.name
        self._rules = Rules(sync)
        self._filter = Filter(sync, self._rules)

    def of(self, raw: bytes) -> dict[str, Any]:
        """Return verdict (send, drop, reject), reason, requests and adjustments."""
        head = decode_head(raw)
        found = head if isinstance(head, BadEvent) else self._filter.judge(head, raw)
        if isinstance(found, BadEvent):
            return self._answer("reject", found.reason, message=found.message)
        if isinstance(found, str):
            return self._answer("drop", found)
        kind, user_key = found
        planned = self._rules.plan(Record(0, kind, user_key, wall_clock_ms(), raw))
        if isinstance(planned, Plan):
            return self._answer("send", "", self._requests(planned), list(planned.adjustments))
        return self._answer(planned.verdict, planned.reason, message=planned.message)

    def _requests(self, plan: Plan) -> Iterable[Request]:
        """Yield the calls for a user that nothing is known of yet."""
        if plan.contact is not None:
            properties, _ = apply(plan.contact.operations, {})
            fields, _ = self._rules.contact_fields(properties)
            fields.pop(plan.identity.field, None)
            yield intercom.create_contact(creation_body(plan.identity, fields))
        if plan.event is not None:
            yield intercom.send_event(event_body(plan.event))

    def _answer(
        self,
        verdict: str,
        reason: str,
        requests: Iterable[Request] = (),
        adjustments: list[str] | None = None,
        message: str = "",
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "sync": self._name,
            "verdict": verdict,
            "reason": reason,
            "requests": [
                {"method": r.method, "path": r.path, "body": msgspec.Raw(r.body or b"null")}
                for r in requests
            ],
        }
        if adjustments:
            answer["adjustments"] = adjustments
        if message:
            answer["message"] = message
        return answer
