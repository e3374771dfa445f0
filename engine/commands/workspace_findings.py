"""Findings about the Intercom workspace of a sync: its token, region, clock and attributes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from amplitude_intercom.engine.clients import client_of
from amplitude_intercom.engine.commands.findings import Finding
from amplitude_intercom.engine.commands.terminal import duration
from amplitude_intercom.engine.delivery.workspace_attributes import (
    KnownAttributes,
    Listed,
    parse_list,
)
from amplitude_intercom.engine.did_you_mean import nearest
from amplitude_intercom.engine.rules.contacts import STANDARD_TYPES
from amplitude_intercom.engine.settings import Sync, source_and_target
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Wire

CLOCK_OFF_S = 60.0
"""Difference from Intercom's clock that is an error; a request takes seconds at most."""


async def ask_intercom(sync: Sync) -> tuple[list[Finding], KnownAttributes | None]:
    """Return findings about a sync's token, and the attributes of its workspace."""
    address = sync.intercom.base_url or f"Intercom ({sync.intercom.region})"
    async with client_of(sync.intercom) as client:
        try:
            answer = await client.send(intercom.me())
            findings = [*_token_findings(sync, answer), *_clock_findings(answer, time.time())]
            if any(finding.level == "error" for finding in findings):
                return findings, None
            listed = await _list(client)
        except NoAnswer as error:
            within = f"no answer within {sync.intercom.timeout_s:g} s"
            why = within if error.cause == "timeout" else str(error)
            return [Finding("error", "intercom", f"{address} does not answer: {why}")], None
    if listed is None:
        text = "the workspace's attributes cannot be listed; missing ones show only when written"
        return [*findings, Finding("warning", "users.properties", text)], None
    return [*findings, *_attribute_findings(sync, listed)], KnownAttributes(listed)


def _clock_findings(answer: Answer, now_s: float) -> Iterator[Finding]:
    """Yield a warning if this machine's clock differs from the ``Date`` of an answer."""
    try:
        off_s = now_s - parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return
    if abs(off_s) > CLOCK_OFF_S:
        way = "ahead of" if off_s > 0 else "behind"
        text = f"the clock of this machine is {duration(abs(off_s))} {way} Intercom's"
        yield Finding("warning", "intercom", f'{text}: events that are "now" get a wrong time')


async def _list(client: Wire) -> list[Listed] | None:
    return parse_list(await client.send(intercom.list_attributes()))


def _token_findings(sync: Sync, answer: Answer) -> Iterator[Finding]:
    said = intercom.parse_error(answer)
    why = said.message or said.code
    if not intercom.is_intercoms(intercom.me(), answer) or (answer.status != 200 and not why):
        kind = answer.headers.get("content-type", "").partition(";")[0] or "no content type"
        text = f"it answered, but not as Intercom does: {answer.status} {kind}"
        yield Finding("error", "intercom", text)
        return
    if answer.status != 200:
        key = "intercom.access_token" if answer.status in (401, 403) else "intercom"
        yield Finding("error", key, f"Intercom answers {answer.status}: {why}")
        return
    app = intercom.decode_json(answer).get("app")
    region = str(app.get("region", "")) if isinstance(app, dict) else ""
    if region and sync.intercom.base_url is None and region.lower() != sync.intercom.region:
        text = f"`{sync.intercom.region}`, but the workspace is in `{region.lower()}`"
        yield Finding("error", "intercom.region", text)


def _attribute_findings(sync: Sync, listed: list[Listed]) -> Iterator[Finding]:
    by_name = {attribute.name: attribute for attribute in listed}
    for index, item in enumerate(sync.users.properties if sync.users.enabled else ()):
        _, target = source_and_target(item)
        if target in STANDARD_TYPES:
            continue
        key, found = f"users.properties[{index}]", by_name.get(target)
        if found is None and sync.users.create_missing_attributes:
            yield Finding("warning", key, f"`{target}` does not exist and will be created")
        elif found is None:
            near = nearest(target, by_name)
            hint = f"; there is `{near}`" if near else ""
            yield Finding("error", key, f"the workspace has no attribute `{target}`{hint}")
        elif found.archived or not found.api_writable:
            what = "archived" if found.archived else "not writable"
            yield Finding("error", key, f"the attribute `{target}` is {what}")
