"""Prometheus' own parser reads the text: families, labels of any text, histograms."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from amplitude_intercom.engine.histograms import Histogram
from amplitude_intercom.engine.metrics_text import MetricsText, label

HELPS = {"ready": "1 while so.", "calls_total": "Calls.", "took_seconds": "Durations."}


def text_of() -> MetricsText:
    return MetricsText("x_", HELPS, frozenset({"took_seconds"}))


def parsed(text: MetricsText) -> dict[tuple[str, str], dict[tuple[tuple[str, str], ...], float]]:
    """Return the values by family with its kind, then by name of the sample and labels."""
    return {
        (family.name, family.type): {
            (("", sample.name), *sorted(sample.labels.items())): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text.encode().decode())
    }


def test_every_family_has_its_kind_even_without_a_sample() -> None:
    assert parsed(text_of()) == {
        ("x_ready", "gauge"): {},
        ("x_calls", "counter"): {},
        ("x_took_seconds", "histogram"): {},
    }


@pytest.mark.parametrize(
    "value", ['a"b', "back\\slash", "two\nlines", "comma,=}", "\N{SNOWMAN}", ""]
)
def test_a_label_of_any_text_is_read_as_it_was(value: str) -> None:
    text = text_of()
    text.add_each("calls_total", label("sync", value), "reason", {value: 3})
    found = parsed(text)["x_calls", "counter"]
    assert found == {(("", "x_calls_total"), ("reason", value), ("sync", value)): 3.0}


def test_numbers_of_any_size_are_read_as_they_were() -> None:
    for value in (0, 1e-9, 2**53, 1e22, math.inf):
        text = text_of()
        text.add("ready", "", value)
        assert list(parsed(text)["x_ready", "gauge"].values()) == [value]


def test_no_value_adds_no_sample() -> None:
    text = text_of()
    text.add("ready", "", None)
    text.add_histogram("took_seconds", "", Histogram((1.0,)).value)
    assert not any(parsed(text).values())


def test_the_buckets_of_a_histogram_are_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for duration_s in (0.05, 0.5, 5.0):
        histogram.add(duration_s)
    text = text_of()
    text.add_histogram("took_seconds", label("sync", "a"), histogram.value)
    found = parsed(text)["x_took_seconds", "histogram"]
    buckets = {key[1][1]: n for key, n in found.items() if key[0][1] == "x_took_seconds_bucket"}
    assert buckets == {"0.1": 1.0, "1.0": 2.0, "+Inf": 3.0}
    assert found[("", "x_took_seconds_count"), ("sync", "a")] == 3.0
    assert found[("", "x_took_seconds_sum"), ("sync", "a")] == pytest.approx(5.55)
