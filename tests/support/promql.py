"""A small part of PromQL, evaluated over scrapes of one target.

Rules
=====
1. A series is found at an instant where the latest scrape within five minutes has it. A series that
   the latest scrape has not is gone at once, as Prometheus marks it.
2. ``increase`` adds the steps up, and takes a step down for a restart from 0. It does not
   extrapolate, so it is at most what Prometheus finds.
3. Anything that is not known here raises, so that no rule passes for want of understanding.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Found = Vector | float
Series = dict[Labels, list[tuple[float, float]]]

LOOK_BACK_S: Final = 300.0
TARGET: Final = {"instance": "daemon:8711", "job": "amplitude-intercom"}
"""What Prometheus adds to each series of the only target."""

_TOKENS: Final = re.compile(
    r"""(?P<space>\s+|\#.*)
      | (?P<range>\[\d+[smhdw]\])
      | (?P<duration>\d+[smhdw]\b)
      | (?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)
      | (?P<name>[a-zA-Z_]\w*)
      | (?P<text>"[^"\\]*")
      | (?P<sign>==|!=|>=|<=|=~|!~|[-+*/(){},=<>])""",
    re.VERBOSE,
)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda left, right: left / right if right else float("inf" if left > 0 else "nan"),
}
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_LEVELS: Final = (("or",), ("and", "unless"), tuple(_COMPARISONS), ("+", "-"), ("*", "/"))
"""Operators, those that bind least first."""

_MATCHES: Final[dict[str, Callable[[str, str], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "=~": lambda held, pattern: re.fullmatch(pattern, held) is not None,
    "!~": lambda held, pattern: re.fullmatch(pattern, held) is None,
}


def duration_s(text: str) -> float:
    """Return the seconds of a duration, as ``5m``."""
    return float(text[:-1]) * _UNIT_S[text[-1]]


# --- the tree -----------------------------------------------------------------------------


class Selector(msgspec.Struct, frozen=True):
    """Series by name and labels; ``range_s`` over 0: their points of that time."""

    name: str
    matches: tuple[tuple[str, str, str], ...] = ()
    range_s: float = 0.0
    offset_s: float = 0.0


class Number(msgspec.Struct, frozen=True):
    """A constant."""

    value: float


class Call(msgspec.Struct, frozen=True):
    """A function of what is between its parentheses."""

    function: str
    arguments: tuple[Any, ...]


class Aggregation(msgspec.Struct, frozen=True):
    """``sum`` or ``max`` of the series that share the labels ``by``."""

    function: str
    by: tuple[str, ...]
    of: Any


class Binary(msgspec.Struct, frozen=True):
    """An operator between two sides, whose series meet ``on`` these labels; None: on all."""

    sign: str
    left: Any
    right: Any
    on: tuple[str, ...] | None = None


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = [*_tokens_of(text), ("end", "")]

    def read(self) -> Any:
        tree = self._level(0)
        self._take("end")
        return tree

    def _level(self, level: int) -> Any:
        if level == len(_LEVELS):
            return self._operand()
        left = self._level(level + 1)
        while self._tokens[0][1] in _LEVELS[level]:
            sign = self._next()
            on = self._label_names() if self._skip("on") else None
            left = Binary(sign, left, self._level(level + 1), on)
        return left

    def _operand(self) -> Any:
        kind = self._tokens[0][0]
        if self._skip("("):
            tree = self._level(0)
            self._take("sign", ")")
            return tree
        if kind == "number":
            return Number(float(self._next()))
        name = self._take("name")
        if name in ("sum", "max"):
            return self._aggregation(name)
        if self._tokens[0][1] == "(":
            return Call(name, tuple(self._listed(lambda: self._level(0))))
        return self._selector(name)

    def _aggregation(self, name: str) -> Aggregation:
        by = self._label_names() if self._skip("by") else ()
        [of] = self._listed(lambda: self._level(0))
        return Aggregation(name, by, of)

    def _selector(self, name: str) -> Selector:
        matches = tuple(self._listed(self._match, "{}")) if self._tokens[0][1] == "{" else ()
        kind = self._tokens[0][0]
        range_s = duration_s(self._next()[1:-1]) if kind == "range" else 0.0
        offset_s = duration_s(self._take("duration")) if self._skip("offset") else 0.0
        return Selector(name, matches, range_s, offset_s)

    def _match(self) -> tuple[str, str, str]:
        name, sign = self._take("name"), self._take("sign")
        return name, sign, self._take("text").strip('"')

    def _label_names(self) -> tuple[str, ...]:
        return tuple(self._listed(lambda: self._take("name")))

    def _listed(self, read: Callable[[], Any], around: str = "()") -> Iterator[Any]:
        self._take("sign", around[0])
        while not self._skip(around[1]):
            yield read()
            self._skip(",")

    def _skip(self, text: str) -> bool:
        is_next = self._tokens[0][1] == text
        if is_next:
            self._tokens.pop(0)
        return is_next

    def _next(self) -> str:
        return self._tokens.pop(0)[1]

    def _take(self, kind: str, text: str = "") -> str:
        found, value = self._tokens.pop(0)
        said = f"{text or kind} expected, not {value!r}"
        assert found == kind, said
        assert text in ("", value), said
        return value


def _tokens_of(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        token = _TOKENS.match(text, at)
        assert token is not None, f"not understood: {text[at:]!r}"
        at = token.end()
        if token.lastgroup != "space":
            yield str(token.lastgroup), token.group()


def parse(text: str) -> Any:
    """Return the tree of an expression.

    Raises:
        AssertionError: it is none, or beyond this part of PromQL.
    """
    return _Reader(text).read()


def selectors(tree: Any) -> Iterator[Selector]:
    """Yield the selectors of a tree."""
    if isinstance(tree, Selector):
        yield tree
    elif isinstance(tree, Call):
        for argument in tree.arguments:
            yield from selectors(argument)
    elif isinstance(tree, Aggregation):
        yield from selectors(tree.of)
    elif isinstance(tree, Binary):
        yield from selectors(tree.left)
        yield from selectors(tree.right)


# --- evaluation ---------------------------------------------------------------------------


class Scrapes:
    """What a monitor has scraped from one target."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._found: list[dict[str, Vector]] = []
        """Of each scrape, the samples by name."""

    def add(self, at_s: float, text: str | None) -> None:
        """Add the metrics of an instant; None: the target did not answer."""
        found: dict[str, Vector] = {"up": {labels_of(TARGET): float(text is not None)}}
        for family in text_string_to_metric_families(text or ""):
            for sample in family.samples:
                held = labels_of({**sample.labels, **TARGET})
                found.setdefault(sample.name, {})[held] = sample.value
        self._times_s.append(at_s)
        self._found.append(found)

    def evaluate(self, tree: Any, at_s: float) -> Found:
        """Return the result of an expression at an instant."""
        if isinstance(tree, Number):
            return tree.value
        if isinstance(tree, Selector):
            assert not tree.range_s, "a range is no vector"
            return self._instant(tree, at_s)
        if isinstance(tree, Call):
            return self._call(tree, at_s)
        if isinstance(tree, Aggregation):
            return _aggregated(tree, _vector(self.evaluate(tree.of, at_s)))
        left, right = self.evaluate(tree.left, at_s), self.evaluate(tree.right, at_s)
        return _combined(tree, left, right)

    def vector(self, tree: Any, at_s: float) -> Vector:
        """Return the result of an expression that is no number."""
        return _vector(self.evaluate(tree, at_s))

    def _instant(self, selector: Selector, at_s: float) -> Vector:
        at_s -= selector.offset_s
        end = bisect_right(self._times_s, at_s)
        if not end or self._times_s[end - 1] <= at_s - LOOK_BACK_S:
            return {}
        return _selected(selector, self._found[end - 1])

    def _range(self, selector: Selector, at_s: float) -> Series:
        at_s -= selector.offset_s
        start = bisect_right(self._times_s, at_s - selector.range_s)
        end = bisect_right(self._times_s, at_s)
        series: Series = {}
        for then_s, found in zip(self._times_s[start:end], self._found[start:end], strict=True):
            for labels, value in _selected(selector, found).items():
                series.setdefault(labels, []).append((then_s, value))
        return series

    def _call(self, call: Call, at_s: float) -> Found:
        if call.function == "absent":
            [of] = call.arguments
            return {} if self.evaluate(of, at_s) else {labels_of({}): 1.0}
        of, *numbers = call.arguments
        assert isinstance(of, Selector)
        assert of.range_s, f"{call.function} is of a range"
        function = _OF_RANGES[call.function]
        parameters = [self.evaluate(number, at_s) for number in numbers]
        points = self._range(of, at_s)
        found = {labels: function(one, *parameters) for labels, one in points.items()}
        return {labels: value for labels, value in found.items() if value is not None}


def labels_of(values: Mapping[str, str]) -> Labels:
    """Return labels as a key. A metric's name is none of them: results have lost it."""
    return frozenset(values.items())


def _only(labels: Labels, names: tuple[str, ...] | None) -> Labels:
    return labels if names is None else frozenset(one for one in labels if one[0] in names)


def _selected(selector: Selector, found: Mapping[str, Vector]) -> Vector:
    return {
        labels: value
        for labels, value in found.get(selector.name, {}).items()
        if _is_meant(selector, dict(labels))
    }


def _is_meant(selector: Selector, held: Mapping[str, str]) -> bool:
    return all(_MATCHES[sign](held.get(name, ""), text) for name, sign, text in selector.matches)


Points = list[tuple[float, float]]


def _increase(points: Points) -> float | None:
    if len(points) < 2:
        return None
    values = [value for _, value in points]
    return sum(new - old if new >= old else new for old, new in pairwise(values))


def _predicted(points: Points, ahead_s: float) -> float | None:
    if len(points) < 2:
        return None
    end_s = points[-1][0]
    times, values = [at_s - end_s for at_s, _ in points], [value for _, value in points]
    middle_s, middle = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at_s - middle_s) ** 2 for at_s in times)
    slope = sum((t - middle_s) * (v - middle) for t, v in zip(times, values, strict=True)) / spread
    return middle + slope * (ahead_s - middle_s)


_OF_RANGES: Final[dict[str, Callable[..., float | None]]] = {
    "increase": _increase,
    "max_over_time": lambda points: max(value for _, value in points),
    "min_over_time": lambda points: min(value for _, value in points),
    "predict_linear": _predicted,
}


def _vector(found: Found) -> Vector:
    assert isinstance(found, dict), "a number is no vector"
    return found


def _aggregated(tree: Aggregation, vector: Vector) -> Vector:
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        groups.setdefault(_only(labels, tree.by), []).append(value)
    function: Callable[[list[float]], float] = sum if tree.function == "sum" else max
    return {labels: function(values) for labels, values in groups.items()}


def _combined(tree: Binary, left: Found, right: Found) -> Found:
    if tree.sign in ("and", "or", "unless"):
        return _as_set(tree, _vector(left), _vector(right))
    if isinstance(left, dict) and isinstance(right, dict):
        others = {_only(labels, tree.on): value for labels, value in right.items()}
        keys = [_only(labels, tree.on) for labels in left]
        assert len(others) == len(right), "several to one"
        assert len(set(keys)) == len(keys), "one to several"
        pairs = {
            labels: (value, others[key])
            for (labels, value), key in zip(left.items(), keys, strict=True)
            if key in others
        }
    elif isinstance(left, dict):
        assert isinstance(right, float)
        pairs = {labels: (value, right) for labels, value in left.items()}
    elif isinstance(right, dict):
        pairs = {labels: (left, value) for labels, value in right.items()}
    else:
        return _ARITHMETIC[tree.sign](left, right)
    if tree.sign in _COMPARISONS:
        # The value that is compared remains, with its labels.
        is_true, kept = _COMPARISONS[tree.sign], 0 if isinstance(left, dict) else 1
        return {labels: pair[kept] for labels, pair in pairs.items() if is_true(*pair)}
    calculate = _ARITHMETIC[tree.sign]
    return {_only(labels, tree.on): calculate(*pair) for labels, pair in pairs.items()}


def _as_set(tree: Binary, left: Vector, right: Vector) -> Vector:
    if tree.sign == "or":
        there = {_only(labels, tree.on) for labels in left}
        return left | {k: v for k, v in right.items() if _only(k, tree.on) not in there}
    there = {_only(labels, tree.on) for labels in right}
    is_wanted = tree.sign == "and"
    return {k: v for k, v in left.items() if (_only(k, tree.on) in there) == is_wanted}
