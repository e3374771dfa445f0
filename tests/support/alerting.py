"""Alerting rules, evaluated at each scrape as Prometheus does.

An alert fires when its expression has had a result at every evaluation for the time ``for``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import yaml

from amplitude_intercom.engine.commands.explain import alerting_rules
from support.promql import Labels, Scrapes, duration_s, parse


class Rule(msgspec.Struct, frozen=True):
    """An alerting rule, as the file has it."""

    alert: str
    tree: Any
    for_s: float
    annotations: dict[str, str]


def rule_of(table: Mapping[str, Any]) -> Rule:
    """Return a rule of a file that YAML has read."""
    for_s = duration_s(table.get("for", "0s"))
    return Rule(table["alert"], parse(table["expr"]), for_s, table["annotations"])


def tables() -> list[dict[str, Any]]:
    """Return the rules of the program's file, as YAML has them."""
    [group] = yaml.safe_load(alerting_rules())["groups"]
    assert group["name"] == "amplitude-intercom"
    found: list[dict[str, Any]] = group["rules"]
    return found


class Monitor:
    """Scrapes a target, evaluates rules, and remembers which alerts have fired, and how."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._since_s: dict[tuple[str, Labels], float] = {}
        self._scrapes = Scrapes()
        self.firing: set[str] = set()
        """The alerts that fire at the latest scrape."""
        self.said: dict[str, set[str]] = {}
        """The summaries of each alert that has fired."""

    def scrape(self, at_s: float, text: str | None) -> None:
        """Take the metrics of an instant, None where there is no answer, and evaluate the rules."""
        self._scrapes.add(at_s, text)
        self.firing = set()
        pending = set()
        for rule in self._rules:
            for labels in self._scrapes.vector(rule.tree, at_s):
                key = (rule.alert, labels)
                pending.add(key)
                if at_s - self._since_s.setdefault(key, at_s) >= rule.for_s:
                    self.firing.add(rule.alert)
                    self.said.setdefault(rule.alert, set()).add(_filled(rule, labels))
        self._since_s = {key: at_s for key, at_s in self._since_s.items() if key in pending}


def _filled(rule: Rule, labels: Labels) -> str:
    """Return a rule's summary with its labels filled in; one that is not there is empty."""
    held = dict(labels)
    text = rule.annotations["summary"]
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: held.get(found[1], ""), text)
