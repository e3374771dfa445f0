"""Findings about the Intercom workspace of a sync: its token, region, clock and attributes."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from amplitude_intercom.engine.delivery.workspace_attributes import (
    Listed,
)
from amplitude_intercom.engine.did_you_mean import nearest
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.workspace_asking import WorkspaceSaid
from amplitude_intercom.engine.rules.contacts import STANDARD_TYPES
from amplitude_intercom.engine.settings import Sync, source_and_target
from amplitude_intercom.engine.wording import duration
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

CLOCK_OFF_S = 60.0
"""Difference from Intercom's clock that is an error; a request takes seconds at most."""


def workspace_findings(sync: Sync, said: WorkspaceSaid, now_s: float) -> Iterator[Finding]:
    """Yield what a workspace's answers mean for a sync. ``now_s``: Unix time of the answers."""
    if said.silence is not None:
        yield said.silence
    if said.me is None:
        return
    found = [*token_findings(sync, said.me), *clock_findings(said.me, now_s)]
    yield from found
    if said.silence is not None or any(finding.level == "error" for finding in found):
        return
    if said.listed is None:
        text = "the workspace's attributes cannot be listed; missing ones show only when written"
        yield Finding("warning", "users.properties", text)
    else:
        yield from _attribute_findings(sync, said.listed)


def clock_findings(answer: Answer, now_s: float) -> Iterator[Finding]:
    """Yield a warning if this machine's clock differs from the ``Date`` of an answer."""
    try:
        off_s = now_s - parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return
    if abs(off_s) > CLOCK_OFF_S:
        way = "ahead of" if off_s > 0 else "behind"
        text = f"the clock of this machine is {duration(abs(off_s))} {way} Intercom's"
        yield Finding("warning", "intercom", f'{text}: events that are "now" get a wrong time')


def token_findings(sync: Sync, answer: Answer) -> Iterator[Finding]:
    """Yield what is wrong with a token, by the answer to ``GET /me``."""
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
