"""The sandbox answers as the real Intercom did, in recorded exchanges of 2021 (version 2.3).

Scenario by scenario the recorded requests are sent to a sandbox whose clock stands at the recorded
time. Ids that Intercom gave out are translated to the sandbox's own as they appear. Contacts that
live on from an earlier scenario are taken from the first list of the scenario.

What is compared: status, every key that was recorded, every value but for the VOLATILE ones (their
type only), and the rate headers' limit and reset. The sandbox may say more: it speaks a later
version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import reference

EXCUSED = {
    ("lead-quirks.js", 32): "unarchiving a deleted contact: 500 in 2021-01, 400 since 2021-03",
    ("lead-quirks.js", 40): "the same",
}
"""Exchanges whose answer the sandbox gives differently, and why."""

NOT_IN_THE_SANDBOX = "/tags"

VOLATILE = frozenset(
    "created_at updated_at request_id workspace_id admin_id label description tags".split()
)
"""Keys of which only the type is compared: clocks, names of the workspace, and tags."""

LAG_S = 60.0
"""Contacts made 17 s ago were missing from a list; after 118 s a search always found them."""

LIMIT_PER_MINUTE = 1000
ATTRIBUTES = {
    "text_field": "string",
    "number_field": "integer",
    "decimal_field": "float",
    "boolean_field": "boolean",
    "date_field": "date",
    "LTV": "float",
}
LIST_ATTRIBUTE = {
    "name": "list_field",
    "model": "contact",
    "options": [{"value": "Red"}, {"value": "Blue"}, {"value": "Green"}],
}
SEEDED = "role external_id email name phone custom_attributes created_at updated_at".split()

Exchange = dict[str, Any]


def load_scenarios() -> dict[str, list[Exchange]]:
    scenarios: dict[str, list[Exchange]] = {}
    for exchange in reference.exchanges():
        scenarios.setdefault(exchange["file"], []).append(exchange)
    return scenarios


SCENARIOS = load_scenarios()


def seconds_of(exchange: Exchange) -> float:
    return parsedate_to_datetime(exchange["headers"]["Date"]).timestamp()


class Replay:
    """One scenario against one sandbox."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self.now_s = seconds_of(exchanges[0]) - 1000
        self.names: dict[str, str] = {}  # Intercom's id or UUID → the sandbox's
        self.sandbox = Sandbox(
            now=lambda: self.now_s,
            limit_per_minute=LIMIT_PER_MINUTE,
            search_lag_s=LAG_S,
            attributes=ATTRIBUTES,
        )
        self.sandbox.handle(
            Request("POST", "/data_attributes", json.dumps(LIST_ATTRIBUTE).encode())
        )
        if exchanges[0]["path"] == "/contacts":
            self.seed(exchanges[0]["response"]["data"])

    def seed(self, contacts: list[dict[str, Any]]) -> None:
        for contact in contacts:
            fields = {field: contact[field] for field in SEEDED}
            self.names[contact["id"]] = self.sandbox.add_contact(**fields)

    def translate(self, text: str) -> str:
        for theirs, ours in self.names.items():
            text = text.replace(theirs, ours)
        return text

    def send(self, exchange: Exchange) -> Answer:
        self.now_s = seconds_of(exchange)
        path = self.translate(exchange["path"])
        if "query" in exchange:
            path += "?" + urlencode(exchange["query"])
        body = self.translate(json.dumps(exchange["body"])).encode() if "body" in exchange else None
        return self.sandbox.handle(Request(exchange["method"], path, body))

    def learn(self, theirs: Any, ours: Any) -> None:
        """Remember the names of a contact that was just made."""
        if theirs.get("type") == "contact" and theirs["id"] not in self.names:
            self.names[theirs["id"]] = ours.get("id", "?")
            if theirs["role"] == "lead":
                self.names[theirs["external_id"]] = ours.get("external_id", "?")

    def problems(self, exchange: Exchange) -> Iterator[str]:
        answer = self.send(exchange)
        if answer.status != exchange["status"]:
            yield f"status {answer.status} instead of {exchange['status']}: {answer.body!r}"
        else:
            ours = json.loads(answer.body)
            self.learn(exchange["response"], ours)
            theirs = json.loads(self.translate(json.dumps(exchange["response"])))
            yield from differences(theirs, ours)
            yield from header_differences(exchange, answer)


def differences(theirs: Any, ours: Any, path: str = "$") -> Iterator[str]:
    if type(theirs) is not type(ours):
        yield f"{path}: {ours!r} instead of {theirs!r}"
    elif isinstance(theirs, dict):
        yield from (f"{path}.{key} is missing" for key in theirs.keys() - ours.keys())
        for key in theirs.keys() & ours.keys():
            yield from value_differences(key, theirs[key], ours[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        if len(theirs) != len(ours):
            yield f"{path}: {len(ours)} elements instead of {len(theirs)}"
        for n, pair in enumerate(zip(ordered(theirs), ordered(ours), strict=False)):
            yield from differences(*pair, f"{path}[{n}]")
    elif theirs != ours:
        yield f"{path}: {ours!r} instead of {theirs!r}"


def value_differences(key: str, theirs: Any, ours: Any, path: str) -> Iterator[str]:
    is_number = key == "id" and isinstance(theirs, int)  # of an attribute
    if key not in VOLATILE and not is_number:
        yield from differences(theirs, ours, path)
    elif type(theirs) is not type(ours):
        yield f"{path}: {ours!r} instead of something like {theirs!r}"


def ordered(elements: list[Any]) -> list[Any]:
    """Return objects by name or id: the order of lists was never the same for long."""
    if all(isinstance(each, dict) for each in elements):
        return sorted(elements, key=lambda each: str(each.get("name") or each.get("id")))
    return elements


def header_differences(exchange: Exchange, answer: Answer) -> Iterator[str]:
    theirs = exchange["headers"]
    if answer.headers["x-ratelimit-limit"] != theirs["X-RateLimit-Limit"]:
        yield f"limit {answer.headers['x-ratelimit-limit']}"
    arrived_s = seconds_of(exchange) - float(theirs["X-Runtime"])
    is_clear = (arrived_s - 1) // 10 == (seconds_of(exchange) + 1) // 10  # not at a window's edge
    if is_clear and answer.headers["x-ratelimit-reset"] != theirs["X-RateLimit-Reset"]:
        yield f"reset {answer.headers['x-ratelimit-reset']} for {theirs}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_sandbox_answers_a_recorded_scenario_as_intercom_did(scenario: str) -> None:
    replay = Replay(SCENARIOS[scenario])
    problems = [
        f"{scenario} {exchange['seq']} {exchange['method']} {exchange['path']}: {problem}"
        for exchange in SCENARIOS[scenario]
        if NOT_IN_THE_SANDBOX not in exchange["path"]
        for problem in replay.problems(exchange)
        if (scenario, exchange["seq"]) not in EXCUSED
    ]
    assert not problems, "\n".join(problems)


def test_every_excuse_is_still_needed() -> None:
    known = {(each["file"], each["seq"]) for each in reference.exchanges()}
    assert EXCUSED.keys() <= known
    for scenario, seq in EXCUSED:
        replay = Replay(SCENARIOS[scenario])
        found = {
            exchange["seq"]: list(replay.problems(exchange))
            for exchange in SCENARIOS[scenario]
            if NOT_IN_THE_SANDBOX not in exchange["path"]
        }
        assert found[seq]
