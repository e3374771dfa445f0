"""Which hours of an export are done: pure, and short enough to be kept as one checkpoint."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

from amplitude_intercom.transports.amplitude_exports import Span

MAX_SPANS: Final = 1_000
"""Spans of hours that are remembered; beyond it the earliest are forgotten, and fetched again."""


class FinishedHours(NamedTuple):
    """Spans in order, with at least one hour between two of them."""

    spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        return ",".join(map(str, self.spans))

    @classmethod
    def read(cls, text: str) -> Self:
        """Return hours that ``str`` has written; none if unreadable: they are fetched again."""
        try:
            spans = [Span.read(part) for part in text.split(",") if part]
        except ValueError:
            return cls()
        found = cls()
        for span in spans:
            found = found.with_(span)
        return found

    def with_(self, added: Span) -> Self:
        """Return these hours and some more."""
        apart = [s for s in self.spans if s.last < added.first - 1 or s.first > added.last + 1]
        joined = [s for s in self.spans if s not in apart]
        first = min([added.first, *(s.first for s in joined)])
        last = max([added.last, *(s.last for s in joined)])
        return type(self)(tuple(sorted([*apart, Span(first, last)])[-MAX_SPANS:]))

    def without(self, taken: Span) -> Self:
        """Return these hours but for some."""
        sides = (
            side
            for s in self.spans
            for side in (
                Span(s.first, min(s.last, taken.first - 1)),
                Span(max(s.first, taken.last + 1), s.last),
            )
        )
        return type(self)(tuple(side for side in sides if side.hours > 0))

    def missing(self, asked: Span) -> list[Span]:
        """Return which of some hours are not among these, in order."""
        missing, first = [], asked.first
        for span in self.spans:
            if span.last < first or span.first > asked.last:
                continue
            if span.first > first:
                missing.append(Span(first, span.first - 1))
            first = span.last + 1
        if first <= asked.last:
            missing.append(Span(first, asked.last))
        return missing
