"""``users show``: the state of one user."""

from __future__ import annotations

from collections.abc import Iterator

from amplitude_intercom.engine.commands.running import FAILED, OK, print_json
from amplitude_intercom.engine.commands.spool_access import read_spools
from amplitude_intercom.engine.commands.taker_choice import choose_sync
from amplitude_intercom.engine.commands.terminal import count, listed, print_table, say
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.store import wall_clock_ms
from amplitude_intercom.engine.spool.user_state import (
    MOST_BATCHES_READ,
    Deferral,
    KnownContact,
    UserState,
)
from amplitude_intercom.engine.wording import duration, shown


async def show(settings: Settings, sync: str | None, key: str, *, as_json: bool) -> int:
    """Print the state of one user, by the key of ``sync.mapping.from``; exits 1 if unknown."""
    name = choose_sync(settings, sync)
    [identifier] = [sync.mapping.identifier for sync in settings.sync if sync.name == name]
    if identifier == "email":
        key = key.strip().lower()
    async with read_spools(settings) as spools:
        state = await spools.user(name, key.encode(errors="replace").decode())
    known = bool(state.waiting.records or state.parked or state.contact or state.dead_letters)
    if as_json:
        print_json(state)
        return OK if known else FAILED
    say(f"user {shown(key)} in {name}" + ("" if known else ": nothing is known"))
    if known:
        print_table(_rows(state, wall_clock_ms()))
    if not state.complete and state.waiting.types_of == state.waiting.records:
        say(f"only {MOST_BATCHES_READ:,} batches of events were looked through", stderr=True)
    return OK if known else FAILED


def _why(deferred: Deferral | None, now_ms: int) -> str:
    """Return the reason for which a user waits without a failure of its own, if it is known."""
    if deferred is None:
        return ""
    if deferred.waits_for:
        return f"; {deferred.waits_for} does not answer, it goes on when that does"
    ahead_ms = deferred.until_ms - now_ms
    when = f"in {duration(ahead_ms / 1000)}" if ahead_ms > 0 else "now"
    if deferred.failures:
        calls = count(deferred.failures, "call")
        return f"; {calls} failed in a row, it is not known whose fault that is; next try {when}"
    return f"; its second begins {when}" if ahead_ms > 0 else ""


def _which(contact: KnownContact) -> str:
    """Return which contact a user has, in words."""
    if not contact.contact_id:
        return "none is known yet: the first write has no answer, or was refused"
    if contact.owner:
        return f"{contact.contact_id}, which is that of {contact.owner}: the two were merged"
    if contact.is_lost:
        return f"{contact.contact_id} is not there any more: looked for at the next update"
    return f"{contact.contact_id}, as written or read last"


def _rows(state: UserState, now_ms: int) -> Iterator[tuple[str, str]]:
    def ago(at_ms: int) -> str:
        return f"{duration(max(0, now_ms - at_ms) / 1000)} ago"

    waiting = state.waiting
    if waiting.first_accepted_at_ms is None:
        yield "waiting", "nothing"
    else:
        first = f"the first accepted {ago(waiting.first_accepted_at_ms)}"
        yield "waiting", f"{waiting.records:,}, {first}{_why(state.deferred, now_ms)}"
        of = "" if waiting.types_of == waiting.records else f"of the first {waiting.types_of:,}: "
        yield "", of + listed(waiting.types.items())
    if state.parked is not None:
        at_ms, failures = state.parked.next_try_at_ms, state.parked.failures
        due = at_ms is None or at_ms <= now_ms
        next_try = "now" if due else f"in {duration(((at_ms or 0) - now_ms) / 1000)}"
        since = f"{count(failures, 'failure')}, the first {ago(state.parked.since_ms)}"
        yield "parked", f"{state.parked.reason}: {since}; next try {next_try}"
    if state.contact is None:
        yield "contact", "not known yet: it is looked for at the next update"
    else:
        contact = state.contact
        yield "contact", f"{_which(contact)} ({ago(contact.at_ms)})"
        names = [name.removeprefix("custom_attributes.") for name in contact.fields]
        if names:
            yield "", f"has {', '.join(names)}, as far as is known"
    if state.dead_letters:
        ids = ", ".join(map(str, state.dead_letter_ids))
        yield "dead letters", f"{listed(state.dead_letters.items())} (latest ids: {ids})"
    else:
        yield "dead letters", "none"
