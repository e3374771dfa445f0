"""The meaning of each setting, by its path: for the reference, ``init`` and ``explain``."""

from __future__ import annotations

from typing import Final

MEANINGS: Final[dict[str, str]] = {
    "data_dir": (
        "where the spool is; one process at a time; refused where every user of the machine "
        "can write"
    ),
    "drain_deadline_s": "seconds that SIGTERM leaves for calls under way",
    "http.listen": "the HTTP source; leave `[http]` out to have none",
    "http.cors_origins": "browsers that may send (an Amplitude key is public); `[]` = none",
    "http.max_event_bytes": (
        "bytes of one event; a larger one is refused by index, from `/`, `/webhook` and files a "
        "dead letter"
    ),
    "http.max_held_bytes": (
        "bytes of request bodies that are held at once; others wait. One address holds a half at "
        "most, and bodies over 256 KiB leave a half to smaller ones"
    ),
    "http.body_timeout_s": "seconds that a body may take to arrive, its wait for bytes included",
    "http.idle_timeout_s": (
        "seconds until a connection without a request is closed; one whose request has begun has 10"
    ),
    "http.max_connections": (
        "connections that are open at once, at most half of what the process may open; others wait"
    ),
    "http.key_requests_per_s": (
        "requests a second that one API key may make in the long run; after a pause ten seconds' "
        "worth may come at once; more are answered 429"
    ),
    "http.key_events_per_s": (
        "events a second that one API key may send in the long run; after a pause ten seconds' "
        "worth may come at once; more are answered 429 and listed as throttled"
    ),
    "http.ip_header": (
        "header in which a trusted proxy in front says the client's address (the last, where it "
        "lists several), for `$remote` and the share of one address; empty: the connection's"
    ),
    "admin.listen": "health, metrics, API; leave `[admin]` out to have none",
    "admin.token": (
        "who has it may look and change; needed to listen beyond loopback; a `file:` is read again "
        "when a token is refused, at most once a second"
    ),
    "admin.read_token": "who has it may look, not change; needs `admin.token` beside it",
    "admin.hosts": (
        "further host names, without a port, that the admin port is asked by, such as a proxy's; "
        "loopback names and the host of `admin.listen` are served anyway"
    ),
    "admin.ip_header": (
        "header in which a trusted proxy in front says the client's address (the last, where it "
        "lists several), for sessions, sign-in attempts and the audit; empty: the connection's"
    ),
    "admin.scheme_header": (
        "header in which a trusted proxy in front says `https`, such as `X-Forwarded-Proto` (the "
        "last, where it lists several): cookies are secure then; empty: `http`"
    ),
    "admin.hide_values": "show outcomes of events without the values of properties",
    "admin.settings": "`edit`; `view`: the settings are shown and cannot be changed from here",
    "sources": (
        "further sources: `[sources.NAME]` holds the arguments of the installed one; `env:` and "
        "`file:` work here too"
    ),
    "spool.max_bytes": (
        "bytes of events that may wait, of all syncs; above 80 % of it those over an equal share"
        " are answered 503, at all of it everybody"
    ),
    "spool.dedupe_window_s": "seconds for which insert ids are remembered",
    "spool.dedupe_max_bytes": "disk space for insert ids; beyond it the oldest are forgotten",
    "spool.dead_letters_days": (
        "days for which dead letters are kept; one that goes is counted as `expired_letter`"
    ),
    "spool.dead_letters_max_bytes": "disk space for dead letters; beyond it the oldest go",
    "spool.max_contacts": (
        "contacts that are remembered; beyond it those that were asked for least recently go"
    ),
    "spool.reserve_bytes": (
        "disk space that is kept back, so that deliveries go on where others fill the disk; "
        "intake answers 503 then, and until as much again is free"
    ),
    "forward.max_line_bytes": "a longer line becomes a dead letter",
    "forward.batch_lines": "lines that are handed over at once",
    "forward.max_backlog": "events in the spool's queue above which reading pauses",
    "log.level": "`debug`, `info`, `warning`, `error`",
    "log.format": "`human`, `json`; `auto`: human on a terminal",
    "relay.name": "letters, digits, `-`, `_`; the spool knows its requests by it",
    "relay.amplitude_api_keys": (
        'whose requests go on to Amplitude; `[]` = those of the syncs; `["*"]` = any, also what '
        "strangers make up"
    ),
    "relay.enabled": "off: nothing more is taken for it; what waits is sent",
    "relay.region": "`us`, `eu`",
    "relay.base_url": "instead of region: a proxy, a local Amplitude",
    "relay.when_full": (
        "`drop_oldest`: beyond an equal share of `spool.max_bytes` its oldest go, counted as "
        "`relay_overflow`; `refuse`: requests are answered 503, as a sync's that is over its share"
    ),
    "relay.connections": "requests that may be out at once",
    "relay.timeout_s": "seconds until a request counts as unanswered",
    "export.api_key": "of the Amplitude project that `forward --export` fetches from",
    "export.secret_key": "of the same project",
    "export.region": "`us`, `eu`",
    "export.base_url": "instead of region: a proxy, a local Amplitude",
    "export.step_hours": (
        "hours that are asked for at once, 24 at most; halved where they are too much for Amplitude"
    ),
    "export.max_bytes": (
        "disk space for one fetched export, in `data_dir/export`; where it is longer, fewer hours "
        "are asked for"
    ),
    "export.timeout_s": "seconds without a byte until a fetch counts as unanswered",
    "sync.name": "letters, digits, `-`, `_`; the spool knows its events by it",
    "sync.amplitude_api_keys": 'whose events this sync takes; `["*"]` = any',
    "sync.enabled": "off: events are counted and dropped, what waits is kept",
    "sync.intercom.access_token": "syncs with the same token share one rate budget",
    "sync.intercom.region": "`us`, `eu`, `au`",
    "sync.intercom.base_url": "instead of region: a proxy, the sandbox",
    "sync.intercom.requests_per_minute": "the first guess; the server's headers replace it",
    "sync.intercom.max_in_flight": (
        "calls that may be out at once, or answered and not settled on disk yet: a kill repeats "
        "these"
    ),
    "sync.intercom.timeout_s": "seconds until a call counts as unanswered",
    "sync.mapping.identifier": "how contacts are found: `external_id`, `email`",
    "sync.mapping.from": (
        "what feeds it: `user_id`, `device_id`, `user.<property>`, `event.<property>`"
    ),
    "sync.mapping.nested": (
        "an object in metadata: its keys become keys of their own (`place_city`), or `drop`"
    ),
    "sync.mapping.arrays": "an array: one text (`a, b`), or `drop`",
    "sync.mapping.stringify": "numbers and booleans as text, as Amplitude's own stream sends them",
    "sync.users.enabled": "Create & Update Users: an Identify creates or updates the contact",
    "sync.users.properties": (
        'user properties to write; `{ from = "a", to = "b" }` renames; `[]` = none'
    ),
    "sync.users.trigger": "`any_update`: events that carry a selected property update too",
    "sync.users.archived": "a contact found archived: bring it back, or `dead_letter`",
    "sync.users.newer_wins": (
        "with `any_update`, and for what is replayed: an event that is older than the one which set"
        " a property last neither sets nor unsets it; `$add` and the like count"
    ),
    "sync.users.create_missing_attributes": (
        "create attributes that the workspace lacks; a number gets a type with decimals"
    ),
    "sync.users.refresh_attributes_s": (
        "seconds after which the workspace's list of attributes is read again"
    ),
    "sync.events.enabled": "Send Events",
    "sync.events.select": '`{ types = […], where = […] }`, OR-ed; `"*"` = any type; `[]` = none',
    "sync.events.rename": '`{ "Old name" = "New name" }`, in Intercom',
    "sync.events.metadata": (
        'event properties to send, in order of priority; `user.NAME` for a user\'s; `{ from = "a",'
        ' to = "b", as = "date" }` renames, and sends a date as one'
    ),
    "sync.events.metadata_limit": (
        "keys that are sent at most; Intercom's reference says 10 are kept, its help page 20"
    ),
    "sync.events.unknown_user": (
        "an event of a user Intercom does not know: `park` has the user wait and tries again over "
        "the retry window; `create` creates the contact, then sends it; `dead_letter` makes it a "
        "dead letter `user_not_found`; `drop` drops it, counted as `unknown_user`"
    ),
    "sync.events.loop_guard": "drop `[Intercom] …` events that came back through Amplitude",
    "sync.events.money": '`{ price = "currency" }`: becomes an exact amount in minor units',
    "sync.events.max_ahead_s": (
        "seconds that an event's clock may be ahead; beyond, it gets the moment of its acceptance"
    ),
    "sync.events.max_age_s": (
        "seconds that an event may be old, twenty years; older ones become dead letters"
    ),
    "sync.delivery.read_ahead": (
        "events that are loaded from the spool at once, of users that may have a turn"
    ),
    "sync.delivery.retry_attempts": "calls for one record before it becomes a dead letter",
    "sync.delivery.retry_window_s": "seconds over which they are spread",
    "sync.delivery.same_second_window_s": (
        "seconds for which it is remembered which event has which second of its user; 0 = off"
    ),
    "sync.delivery.same_second_shift_s": (
        "seconds by which an event is moved, at most, where a different one of its user and name "
        "has its second already; it is sent once the new second has begun; 0 to 600"
    ),
    "sync.delivery.probe_first_s": "first pause between probes in an outage",
    "sync.delivery.probe_most_s": "longest pause between probes in an outage",
}
