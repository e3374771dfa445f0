"""The alerting rules are a rule file of Prometheus over metrics and labels that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.explain import alerting_rules, explain
from amplitude_intercom.engine.metrics import PREFIX, render
from amplitude_intercom.engine.sources import start_sources
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.sandbox.faults import Fault
from support import alerting, promql, relaying, simulation
from support.alerting import Rule, rule_of
from support.promql import TARGET, Selector
from support.simulation import API_KEY, event
from support.virtual import in_virtual_time

Labels = dict[str, set[str]]
"""The values of each label."""


def rules() -> list[Rule]:
    return [rule_of(table) for table in alerting.tables()]


def selectors() -> Iterator[tuple[str, Selector]]:
    """Yield each selector of each rule with the rule's name, those of ``up`` left out."""
    for rule in rules():
        for selector in promql.selectors(rule.tree):
            if selector.name != "up":
                yield rule.alert, selector


class Quiet:
    """A source without events."""

    async def run(self, intake: Intake) -> None:
        await anyio.sleep_forever()


async def metrics_of(engine: Engine) -> str:
    return render(await engine.status(), ready=engine.overview.ready).decode()


async def metrics_of_syncs(folder: Path) -> str:
    """Return the metrics of an engine with a dead letter, a parked user and a source."""
    delivery = {"retry_attempts": 2, "retry_window_s": 600}
    local = simulation.sandbox()
    async with (
        simulation.engine(folder, local, delivery=delivery) as engine,
        anyio.create_task_group() as tasks,
    ):
        await start_sources({"quiet": Quiet()}, engine.intake, engine.sources, tasks)
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(3_600)
        await engine.submit([event("nobody-else", 2)], api_key=API_KEY)
        await anyio.sleep(5)
        local.faults.append(Fault("status", 503))
        await engine.submit([event("nobody-new", 3)], api_key=API_KEY)
        await anyio.sleep(1)
        text = await metrics_of(engine)
        tasks.cancel_scope.cancel()
    return text


async def metrics_of_relay(folder: Path) -> str:
    """Return the metrics of an engine with a relay that has lost events."""
    local = relaying.amplitude(faults=[Fault("status", 503)])
    top = {"spool": {"max_bytes": 1_000_000}}
    async with relaying.engine(folder, local, top=top) as engine:
        for n in range(60):
            long = relaying.event("d", n, text="x" * 10_000)
            await relaying.take_in(engine, relaying.request([long]))
        return await metrics_of(engine)


async def labels_by_metric(folder: Path) -> dict[str, Labels]:
    """Return the labels of each metric."""
    found: dict[str, Labels] = {}
    texts = [await metrics_of_syncs(folder / "syncs"), await metrics_of_relay(folder / "relay")]
    for family in (one for text in texts for one in text_string_to_metric_families(text)):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def test_the_rules_have_the_shape_that_prometheus_reads() -> None:
    tables: list[dict[str, Any]] = alerting.tables()
    assert len({table["alert"] for table in tables}) == len(tables)
    for table in tables:
        assert table.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"AmplitudeIntercom\w+", table["alert"])
        assert re.fullmatch(r"\d+m", table.get("for", "1m"))
        assert table["labels"].keys() == {"severity"}
        assert table["labels"]["severity"] in ("warning", "critical")
        assert table["annotations"].keys() == {"summary", "description"}
        assert all(isinstance(text, str) for text in table["annotations"].values())


@in_virtual_time
async def test_every_expression_is_over_metrics_and_labels_that_there_are(tmp_path: Path) -> None:
    there = await labels_by_metric(tmp_path)
    for alert, selector in selectors():
        assert selector.name.startswith(PREFIX), alert
        assert selector.name in there, alert
        matched = {name for name, _, _ in selector.matches}
        assert matched <= there[selector.name].keys(), alert


@in_virtual_time
async def test_people_are_told_labels_that_the_metrics_of_a_rule_have(tmp_path: Path) -> None:
    there = await labels_by_metric(tmp_path)
    for rule in rules():
        said = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
        names = [selector.name for alert, selector in selectors() if alert == rule.alert]
        assert said <= {label for name in names for label in there[name]} | TARGET.keys()


def test_explain_prints_the_rules_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("alerts", as_json=False) == 0
    assert capsys.readouterr().out == alerting_rules()
