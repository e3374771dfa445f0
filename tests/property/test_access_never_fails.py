"""Whatever the headers of a request say: access is decided, and no page of elsewhere changes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.console.access import (
    SAFE_METHODS,
    AccessRules,
    Credential,
    RequestFacts,
    decide,
)
from amplitude_intercom.engine.console.problems import Problem
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin

TEXT = st.text(st.characters(), max_size=40)
WHO = st.none() | st.sampled_from([Credential("a", True), Credential("b", False)])
PATHS = st.sampled_from(
    "/ /healthz /metrics /toggle /help/problems/x /api/status /api/v1/session"
    " /api/v1/settings/file /api/a/dead-letters/list /api/a/dead-letters/discard".split()
)
SITES = st.sampled_from(["same-origin", "same-site", "cross-site", "none"])
HOSTS = st.sampled_from(
    ["localhost", "127.0.0.1:8711", "[::1]:8711", "10.0.0.1", "evil.example", "console.example"]
)
FACTS = st.builds(
    RequestFacts,
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]) | TEXT,
    path=PATHS | TEXT,
    host=HOSTS | TEXT,
    scheme=st.sampled_from(["http", "https"]),
    origin=st.none() | HOSTS.map("http://{}".format) | TEXT,
    fetch_site=st.none() | SITES | TEXT,
    media_type=st.sampled_from(["application/json", "text/plain", ""]) | TEXT,
    bearer_given=st.booleans(),
    bearer=WHO,
    session=WHO,
)
TOKEN = Secret("t")
RULES = st.sampled_from(
    [
        Admin(),
        Admin(token=TOKEN),
        Admin(listen="[::]:8711", token=TOKEN, settings="view"),
        Admin(listen="fe80::1%eth0:1", token=TOKEN, hosts=["console.example"]),
    ]
).map(AccessRules.of)


@given(FACTS, RULES)
def test_access_is_decided_by_the_rules_for_any_request(
    facts: RequestFacts, rules: AccessRules
) -> None:
    found = decide(facts, rules)
    if isinstance(found, Problem):
        assert json.loads(found.body(facts.path))["status"] == found.status
        return
    if facts.path in ("/healthz", "/readyz") or facts.path.startswith("/help/problems/"):
        return
    assert rules.serves(facts.host)
    if facts.method not in SAFE_METHODS:
        own = f"{facts.scheme}://{facts.host}".lower()
        says_own = facts.fetch_site == "same-origin" or (
            facts.fetch_site is None and (facts.origin or "").lower() == own
        )
        says_nothing = facts.fetch_site is None and facts.origin is None
        assert says_own or (says_nothing and (facts.bearer is not None or not rules.has_token))
    if facts.changes:
        assert found.may_change
