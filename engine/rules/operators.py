"""The operators of a ``where`` clause: a property's values against the clause's.

The rules are those of Amplitude's charts ("Modify user segment" and Dashboard REST pages), because
Amplitude does not document the operators of its streams:

- The values of a clause are OR-ed; only for ``set contains`` all of them must be there. A negated
  operator is exactly *not* the positive one.
- A property that is absent or null is ``(none)``: ``is`` with the value ``(none)`` matches it, no
  other positive operator does. An empty text and an empty array are values.
- Values are compared by their text, so that ``100`` and ``"100"`` in the settings both match 100,
  100.0 and ``"100"``. A boolean's text is ``true`` or ``false``, a number's its shortest form
  (``100``, ``0.5``). Objects, nested arrays, NaN and infinities have no text and match nothing.
- On an array ``is``, ``contains``, ``starts with`` and ``glob`` hold if they hold for one element;
  to ``set contains`` a single value is an array of one.
- ``contains`` and ``starts with`` ignore case, ``is`` and ``glob`` do not.
- ``<`` ``<=`` ``>`` ``>=`` take a number, or a text that is a decimal number; nothing else matches.
- In a glob only ``**`` and a written ``/`` match a slash: not ``*``, ``?``, ``[0-9]``, ``[!a-z]``.
- Every operator reads a bounded part of a value: the first 1,000 elements of an array; for
  ``contains``, ``starts with`` and ``glob`` the first 4,096 characters of a text, or of an array's
  elements together. A longer text is no number. ``is`` and ``set contains`` compare whole texts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, get_args

from amplitude_intercom.engine.rules.globs import Glob
from amplitude_intercom.engine.rules.numerals import DECIMAL, digits
from amplitude_intercom.engine.setting_types import NONE, Operator, Value

MAX_ELEMENTS: Final = 1_000
"""Elements of an array that an operator reads."""

MAX_CHARACTERS: Final = 4_096
"""Characters that an operator searches: four times the text that Amplitude keeps."""

_Test = Callable[[Any], bool]


class Comparison(NamedTuple):
    """An operator with its values."""

    test: _Test
    """Whether the positive operator holds for one value."""
    if_missing: bool
    """Whether the positive operator holds for a property that is missing."""
    is_negated: bool


def comparison(op: str, values: Sequence[Value]) -> Comparison:
    """Return the operator ``op`` with the values of a clause.

    Raises:
        ValueError: no such operator, no values, or a value that the operator cannot use.
    """
    if op not in get_args(Operator):
        raise ValueError(f"op is none of {', '.join(get_args(Operator))}")
    if not values:
        raise ValueError("values is empty")
    positive = _NEGATED.get(op, op)
    test = _TESTS[positive](values)
    return Comparison(test, positive == "is" and NONE in values, op in _NEGATED)


def _text(value: object) -> str | None:
    """Return the text by which a value is compared; None if it has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return digits(value) if isinstance(value, int) else None


def _texts(value: object) -> list[str]:
    elements = value[:MAX_ELEMENTS] if isinstance(value, list) else [value]
    return [text for text in map(_text, elements) if text is not None]


def _searched(value: object) -> list[str]:
    """Return the texts to search, cut to ``MAX_CHARACTERS`` in all."""
    if isinstance(value, str):
        return [value[:MAX_CHARACTERS]]
    found, left = [], MAX_CHARACTERS
    for text in _texts(value):
        found.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return found


def _wanted(values: Sequence[Value]) -> list[str]:
    texts = []
    for value in values:
        text = _text(value)
        if text is None:
            raise ValueError("a value is not a finite number")
        texts.append(text)
    return texts


def _wanted_parts(values: Sequence[Value]) -> list[str]:
    parts = [text.casefold() for text in _wanted(values)]
    if "" in parts:
        raise ValueError("a value is empty, which every text would match")
    return parts


def _is(values: Sequence[Value]) -> _Test:
    wanted = frozenset(_wanted(values))
    return lambda value: not wanted.isdisjoint(_texts(value))


def _contains(values: Sequence[Value]) -> _Test:
    parts = _wanted_parts(values)
    return lambda value: any(
        part in text for text in map(str.casefold, _searched(value)) for part in parts
    )


def _starts_with(values: Sequence[Value]) -> _Test:
    prefixes = tuple(_wanted_parts(values))
    return lambda value: any(text.casefold().startswith(prefixes) for text in _searched(value))


def _set_contains(values: Sequence[Value]) -> _Test:
    wanted = frozenset(_wanted(values))
    return lambda value: wanted.issubset(_texts(value))


def _glob(values: Sequence[Value]) -> _Test:
    globs = [Glob(text) for text in _wanted(values)]
    return lambda value: any(glob.matches(text) for text in _searched(value) for glob in globs)


def _numeric(compare: Callable[[Any, Any], bool]) -> Callable[[Sequence[Value]], _Test]:
    def make(values: Sequence[Value]) -> _Test:
        bounds = [_bound(value) for value in values]

        def test(value: Any) -> bool:
            number = _number(value)
            return number is not None and any(compare(number, bound) for bound in bounds)

        return test

    return make


def _number(value: object) -> int | float | None:
    """Return a value, or the decimal number in a text, as a finite number; None if it is none."""
    if isinstance(value, str):
        is_decimal = len(value) <= MAX_CHARACTERS and DECIMAL.fullmatch(value)
        value = float(value) if is_decimal else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _bound(value: Value) -> int | float:
    number = _number(value)
    if number is None:
        raise ValueError(f"{value!r} is not a number")
    return number


_TESTS: dict[str, Callable[[Sequence[Value]], _Test]] = {
    "is": _is,
    "contains": _contains,
    "starts with": _starts_with,
    "set contains": _set_contains,
    "glob": _glob,
    "<": _numeric(operator.lt),
    "<=": _numeric(operator.le),
    ">": _numeric(operator.gt),
    ">=": _numeric(operator.ge),
}

_NEGATED = {
    "is not": "is",
    "does not contain": "contains",
    "does not start with": "starts with",
    "set does not contain": "set contains",
    "not glob": "glob",
}
