"""The tables of a spool, in the SQL that SQLite and PostgreSQL both know.

A spool of version *n* has had the first *n* of ``STEPS``. A released step never changes; a change
is a new step. ``taker`` is the id of a row of ``takers`` everywhere; times are Unix milliseconds.
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL){clustered};

-- Syncs and relays, which keep parts of batches. unpacked_to: the last batch with records as rows.
-- delivered_at_ms: the last delivery; 0: none yet.
CREATE TABLE takers (
    id {int} PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    crc {int} NOT NULL,
    unpacked_to {int} NOT NULL DEFAULT 0,
    delivered_at_ms {int} NOT NULL DEFAULT 0
){table};

-- taker 0: the whole spool.
CREATE TABLE counters (
    taker {int} NOT NULL,
    name TEXT NOT NULL,
    value {int} NOT NULL,
    PRIMARY KEY (taker, name)
){clustered};

-- The change of counters within span minutes (1 or 60) from a minute since 1970 on.
CREATE TABLE minutes (
    span {int} NOT NULL,
    minute {int} NOT NULL,
    taker {int} NOT NULL,
    name TEXT NOT NULL,
    value {int} NOT NULL,
    PRIMARY KEY (span, minute, taker, name)
){clustered};

-- The positions of sources that can be read again.
CREATE TABLE checkpoints (
    taker {int} NOT NULL,
    source TEXT NOT NULL,
    position TEXT NOT NULL,
    PRIMARY KEY (taker, source)
){clustered};

-- A taker's part of a batch, in order of acceptance: the events, and a JSON index of them.
-- It is deleted with the last record that points into it.
CREATE TABLE inbox (
    id {int} PRIMARY KEY,
    taker {int} NOT NULL,
    accepted_at_ms {int} NOT NULL,
    count {int} NOT NULL,
    size_bytes {int} NOT NULL,
    crc {int} NOT NULL,
    entries TEXT NOT NULL,
    events {bytes} NOT NULL
){table};
CREATE INDEX inbox_by_taker ON inbox (taker, id);

-- Accepted, unpacked and not settled. id: its batch's × 512 + its slot there. kind: 1 event,
-- 2 identify, 3 event that updates its user too. start, length: the position of its bytes in the
-- events of its batch; raw: its bytes, if it has taken them along.
-- set_aside: its user has a row in users, and the record waits there.
-- claim_id: its first id; a replayed dead letter gets a new id and keeps its claims.
-- updated: its contact update is done.
CREATE TABLE records (
    id {int} PRIMARY KEY,
    taker {int} NOT NULL,
    kind {int} NOT NULL,
    user_key TEXT NOT NULL,
    accepted_at_ms {int} NOT NULL,
    attempts {int} NOT NULL DEFAULT 0,
    first_failed_at_ms {int} NOT NULL DEFAULT 0,
    set_aside {int} NOT NULL DEFAULT 0,
    claim_id {int} NOT NULL,
    updated {int} NOT NULL DEFAULT 0,
    start {int} NOT NULL,
    length {int} NOT NULL,
    crc {int} NOT NULL,
    raw {bytes}
){table};
CREATE INDEX records_set_aside ON records (taker, user_key, id) WHERE set_aside = 1;
CREATE INDEX records_replayed ON records (claim_id) WHERE claim_id <> id;

-- Users with waiting records: parked or deferred until wake_at_ms, or (NULL) being worked off.
-- reason: of the last failure; empty: nothing has failed. since_ms: of the first failure in a row.
-- waits_for: an endpoint whose circuit was open then; the user waits until it closes, from
-- wake_at_ms on. For a user that Intercom does not know: refusals: its attempts that got a 404;
-- attempt_at_ms: the time of the next attempt; tried_at_ms: the time of the last call.
CREATE TABLE users (
    taker {int} NOT NULL,
    user_key TEXT NOT NULL,
    wake_at_ms {int},
    failures {int} NOT NULL,
    reason TEXT NOT NULL,
    since_ms {int} NOT NULL,
    waits_for TEXT NOT NULL DEFAULT '',
    refusals {int} NOT NULL DEFAULT 0,
    attempt_at_ms {int} NOT NULL DEFAULT 0,
    tried_at_ms {int} NOT NULL DEFAULT 0,
    PRIMARY KEY (taker, user_key)
){clustered};
CREATE INDEX users_deferred ON users (taker, wake_at_ms)
    WHERE wake_at_ms IS NOT NULL AND waits_for = '' AND reason = '';
CREATE INDEX users_parked ON users (taker, wake_at_ms)
    WHERE wake_at_ms IS NOT NULL AND waits_for = '' AND reason <> '';
CREATE INDEX users_by_need ON users (taker, waits_for, wake_at_ms) WHERE waits_for <> '';

CREATE TABLE dead_letters (
    id {int} PRIMARY KEY,
    taker {int} NOT NULL,
    reason TEXT NOT NULL,
    status {int} NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempts {int} NOT NULL,
    first_failed_at_ms {int} NOT NULL,
    last_failed_at_ms {int} NOT NULL,
    accepted_at_ms {int} NOT NULL,
    user_key TEXT NOT NULL,
    event_type TEXT NOT NULL,
    origin TEXT NOT NULL,
    line {int},
    claim_id {int} NOT NULL,
    updated {int} NOT NULL,
    crc {int} NOT NULL,
    raw {bytes} NOT NULL
){table};
CREATE INDEX dead_letters_by_taker ON dead_letters (taker, last_failed_at_ms, id);
CREATE INDEX dead_letters_by_reason ON dead_letters (taker, reason, last_failed_at_ms, id);
CREATE INDEX dead_letters_by_user
    ON dead_letters (taker, user_key, reason, last_failed_at_ms, id);
CREATE INDEX dead_letters_replayed ON dead_letters (claim_id) WHERE claim_id <> id;

-- Dead letters of one kind. sample_id: the latest.
CREATE TABLE dead_letter_groups (
    taker {int} NOT NULL,
    reason TEXT NOT NULL,
    status {int} NOT NULL,
    code TEXT NOT NULL,
    event_type TEXT NOT NULL,
    count {int} NOT NULL,
    first_ms {int} NOT NULL,
    last_ms {int} NOT NULL,
    sample_id {int} NOT NULL,
    PRIMARY KEY (taker, reason, status, code, event_type)
){clustered};

-- Work on many records or dead letters. query: JSON. up_to: the last row that is meant, by the time
-- of its last failure and its id (1700000000000-512; of a record only the id counts). who, why: the
-- requester and the reason. cursor: the last row that was examined. counts: JSON, rows by outcome.
CREATE TABLE jobs (
    id {int} PRIMARY KEY,
    kind TEXT NOT NULL,
    sync TEXT NOT NULL,
    query TEXT NOT NULL,
    up_to TEXT NOT NULL,
    expected {int} NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    made_at_ms {int} NOT NULL,
    state TEXT NOT NULL,
    cursor TEXT NOT NULL,
    counts TEXT NOT NULL,
    ended_at_ms {int} NOT NULL
){table};

-- Insert ids of accepted events. id: the record's; key: its taker's id, and a hash.
CREATE TABLE insert_ids (
    id {int} PRIMARY KEY,
    key {bytes} NOT NULL UNIQUE,
    at_ms {int} NOT NULL
){table};

-- The second that an event (id: its claim_id) was given. key: hash of taker, user, name and second,
-- in the row of the event that holds it; content: hash of taker, user, name, own second and bytes,
-- in the row of the first event with these. Events that share a second have neither.
CREATE TABLE created_at_claims (
    id {int} PRIMARY KEY,
    key {bytes} UNIQUE,
    content {bytes} UNIQUE,
    second {int} NOT NULL,
    at_ms {int} NOT NULL
){table};

-- The workspaces of access tokens: an address of Intercom, and the id of the app there.
CREATE TABLE workspaces (
    id {int} PRIMARY KEY,
    address TEXT NOT NULL,
    code TEXT NOT NULL,
    UNIQUE (address, code)
){table};

-- Known contacts, by external_id or email and its value. known: the knowledge of one (JSON).
-- used_day: the day since 1970 of its last use. unsure: 1 while a write of it has no answer.
CREATE TABLE contacts (
    workspace {int} NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    known TEXT NOT NULL,
    at_ms {int} NOT NULL,
    used_day {int} NOT NULL,
    unsure {int} NOT NULL,
    crc {int} NOT NULL,
    PRIMARY KEY (workspace, field, value)
){clustered};
CREATE INDEX contacts_by_use ON contacts (unsure, used_day);

-- Event names that were sent, without case, and the day since 1970 of the last time.
CREATE TABLE event_names (
    workspace {int} NOT NULL,
    name TEXT NOT NULL,
    last_day {int} NOT NULL,
    PRIMARY KEY (workspace, name)
){clustered};
"""

_RELAYED: Final = """
-- Requests on their way to Amplitude, as they came. count: the number of events. devices: JSON, for
-- each event the CRC32 of its project and device (only one, if all are equal). remaining: JSON, the
-- indexes of events that are still to be sent; empty: all. waiting: the number of these events.
-- request: JSON, all but the body. body_crc: of request and body; crc: of the columns before.
CREATE TABLE relayed (
    id {int} PRIMARY KEY,
    taker {int} NOT NULL,
    accepted_at_ms {int} NOT NULL,
    api_key TEXT NOT NULL,
    count {int} NOT NULL,
    devices TEXT NOT NULL,
    remaining TEXT NOT NULL,
    waiting {int} NOT NULL,
    size_bytes {int} NOT NULL,
    crc {int} NOT NULL,
    request TEXT NOT NULL,
    body_crc {int} NOT NULL,
    body {bytes} NOT NULL
){table};
CREATE INDEX relayed_by_taker ON relayed (taker, id);
"""

_PARKED: Final = """
-- Parked users are counted in counters. The one that waits the longest is found at once, and so are
-- the users that are not parked.
CREATE INDEX users_by_since ON users (taker, since_ms) WHERE reason <> '';
CREATE INDEX users_not_parked ON users (taker, reason) WHERE reason = '';
INSERT INTO counters (taker, name, value)
    SELECT taker, 'parked:' || reason, count(*) FROM users WHERE reason <> ''
    GROUP BY taker, reason;
"""

STEPS: Final = (_FIRST, _RELAYED, _PARKED)
SCHEMA_VERSION: Final = len(STEPS)


def statements(step: str, *, int_: str, bytes_: str, table: str, clustered: str) -> str:
    """Return a step in the SQL of one database."""
    return step.format(int=int_, bytes=bytes_, table=table, clustered=clustered)
