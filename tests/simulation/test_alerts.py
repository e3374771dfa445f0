"""The alerting rules are a rule file of Prometheus over metrics and labels that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from amplitude_intercom.engine.commands.explain import alerting_rules, explain
from amplitude_intercom.engine.delivery.gate import State
from amplitude_intercom.engine.metrics import PREFIX, render
from amplitude_intercom.transports.sandbox.faults import Fault
from support import simulation
from support.simulation import API_KEY, event
from support.virtual import in_virtual_time

OF_THE_SERVER = {"instance", "job"}
"""Labels that Prometheus itself adds."""


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(alerting_rules())["groups"]
    assert group["name"] == "amplitude-intercom"
    found: list[dict[str, Any]] = group["rules"]
    return found


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}\w+", expression))


def labels_in(rule: dict[str, Any]) -> set[str]:
    """Return the labels that a rule selects, groups by, or quotes to people."""
    said = " ".join(rule["annotations"].values())
    selected = re.findall(r"[{,]\s*(\w+)\s*(?:=|!)", rule["expr"])
    grouped = re.findall(r"\b(?:by|on|without|ignoring) \(([\w, ]+)\)", rule["expr"])
    names = [name for group in grouped for name in re.split(r",\s*", group)]
    return {*selected, *names, *re.findall(r"\$labels\.(\w+)", said)}


async def labels_by_metric(folder: Path) -> dict[str, set[str]]:
    """Return the labels of each metric of an engine with each kind of trouble."""
    delivery = {"retry_attempts": 2, "retry_window_s": 600}
    local = simulation.sandbox()
    async with simulation.engine(folder, local, delivery=delivery) as engine:
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(3_600)
        await engine.submit([event("nobody-else", 2)], api_key=API_KEY)
        await anyio.sleep(5)
        local.faults.append(Fault("status", 503))
        await engine.submit([event("nobody-new", 3)], api_key=API_KEY)
        await anyio.sleep(1)
        text = render(await engine.status(), ready=engine.overview.ready).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_there_are_ten_rules_of_the_shape_that_prometheus_reads() -> None:
    assert len({rule["alert"] for rule in rules()}) == 10
    for rule in rules():
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"AmplitudeIntercom\w+", rule["alert"])
        assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert all(text.endswith(".") for text in rule["annotations"].values())


@in_virtual_time
async def test_every_expression_is_over_metrics_and_labels_that_there_are(tmp_path: Path) -> None:
    there = await labels_by_metric(tmp_path)
    for rule in rules():
        assert metrics_in(rule["expr"])
        for metric in metrics_in(rule["expr"]):
            assert metric in there, rule["alert"]
            assert labels_in(rule) - OF_THE_SERVER <= there[metric], rule["alert"]


def test_a_health_that_a_rule_selects_is_one() -> None:
    selected = [re.findall(r'health="(\w+)"', rule["expr"]) for rule in rules()]
    found = {health for names in selected for health in names}
    assert found == {"unauthorized", "outage"}
    assert found <= set(State)


def test_explain_prints_the_rules_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("alerts", as_json=False) == 0
    assert capsys.readouterr().out == alerting_rules()
