"""Prometheus' text format: families of samples, each under its help and kind.

``prometheus_client`` checks each name and label anew with every sample, which takes half a second
for a thousand syncs; here names are constants, and only the values of labels are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import accumulate

from amplitude_intercom.engine.histograms import HistogramValue


def label(name: str, value: str) -> str:
    """Return a label as it is written between the braces."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


class MetricsText:
    """Samples, collected by family."""

    def __init__(self, prefix: str, helps: Mapping[str, str], histograms: Set[str]) -> None:
        """``helps``: of each family, by name without the prefix. ``histograms``: of these names."""
        self._prefix = prefix
        self._helps = helps
        self._histograms = histograms
        self._lines: dict[str, list[str]] = {name: [] for name in helps}

    def add(self, name: str, labels: str, value: float | None) -> None:
        """Add a sample of a family; None adds nothing. ``labels``: written, joined by commas."""
        if value is not None:
            braces = f"{{{labels}}}" if labels else ""
            self._lines[name].append(f"{self._prefix}{name}{braces} {float(value)!r}\n")

    def add_each(self, name: str, labels: str, key_label: str, values: Mapping[str, float]) -> None:
        """Add a sample for each value, with its key as one more label."""
        start = labels and f"{labels},"
        for key, value in values.items():
            self.add(name, start + label(key_label, key), value)

    def add_histogram(self, name: str, labels: str, found: HistogramValue | None) -> None:
        """Add the buckets, the sum and the count of a histogram; nothing where it is empty."""
        if found is None or not any(found.counts):
            return
        lines, name_of, start = self._lines[name], self._prefix + name, labels and f"{labels},"
        up_to = list(accumulate(found.counts))
        for bound, count in zip([*map(repr, found.bounds_s), "+Inf"], up_to, strict=True):
            lines.append(f'{name_of}_bucket{{{start}le="{bound}"}} {count}\n')
        braces = f"{{{labels}}}" if labels else ""
        lines.append(
            f"{name_of}_sum{braces} {found.sum_s!r}\n{name_of}_count{braces} {up_to[-1]}\n"
        )

    def encode(self) -> bytes:
        """Return the text."""
        parts = []
        for name, lines in self._lines.items():
            head, kind = f"{self._prefix}{name}", kind_of(name, self._histograms)
            parts.append(f"# HELP {head} {self._helps[name]}\n# TYPE {head} {kind}\n")
            parts += lines
        return "".join(parts).encode()


def kind_of(name: str, histograms: Set[str]) -> str:
    """Return the kind of a family by its name: counter, gauge or histogram."""
    if name in histograms:
        return "histogram"
    return "counter" if name.endswith("_total") else "gauge"
