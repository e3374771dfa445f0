"""Which events are sent: the settings ``[sync.events] select``, compiled.

The rules, those of Amplitude's charts ("Modify user segment" and Dashboard REST pages), because the
operators of its streams are not documented:

- Selectors are OR-ed, the ``where`` clauses of one AND-ed, the values of a clause OR-ed; only for
  ``set contains`` must all values be there. A negated operator is exactly *not* the positive one.
- The types ``*`` and ``_all`` (Amplitude's REST spelling) are any type.
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
- What an operator looks at is bounded, whatever a client sends: of an array its first 1,000
  elements, of the groups of a type as many; for ``contains``, ``starts with`` and ``glob`` the
  first 4,096 characters of a text, or of an array's elements together, as if nothing came behind
  them. A longer text is no number. ``is`` and ``set contains`` compare whole texts.

A property is ``event.NAME``, ``user.NAME``, ``group.TYPE`` (the names of that type's groups),
``group.TYPE.NAME`` (that property of any of them), or a top-level field such as ``country``.
``engine.rules.paths`` has the rules by which it is looked up.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, get_args

from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.globs import Glob
from amplitude_intercom.engine.rules.numerals import DECIMAL, digits
from amplitude_intercom.engine.settings import ANY_TYPE, NONE, Clause, Operator, Selector, Value

MAX_ELEMENTS: Final = 1_000
"""Elements of an array that an operator looks at: enough for lists that people keep."""

MAX_CHARACTERS: Final = 4_096
"""Characters in which an operator searches: four times the text that Amplitude keeps."""

_Condition = Callable[[Mapping[str, Any]], bool]
_Test = Callable[[Any], bool]
# Several values where several groups have the property; none where it is missing.
_Reader = Callable[[Mapping[str, Any]], Sequence[Any]]


class Predicate:
    """Whether an event of a selected type passes.

    ``always``: it does whatever it holds, so that nothing need be decoded. ``needed``: the
    top-level keys that ``matches`` looks at; empty where ``always``.
    """

    __slots__ = ("_alternatives", "always", "needed")

    def __init__(
        self, alternatives: Sequence[Sequence[_Condition]], needed: frozenset[str]
    ) -> None:
        self._alternatives = alternatives
        self.always = not all(alternatives)
        self.needed = frozenset() if self.always else needed

    def matches(self, event: Mapping[str, Any]) -> bool:
        """Whether the decoded event, in normal form, passes. Never raises for what JSON can say."""
        if self.always:
            return True
        return any(
            all(condition(event) for condition in conditions) for conditions in self._alternatives
        )

    def __repr__(self) -> str:
        return f"<Predicate always={self.always} needed={sorted(self.needed)}>"


class Selection:
    """Selectors, compiled, so that a type that is not selected costs one look-up.

    ``types`` are the distinct types that are named, to hold against Intercom's limit of 120;
    ``any_type`` says that others may pass too. ``needed`` are the top-level keys that any predicate
    looks at.
    """

    def __init__(self, selectors: Sequence[Selector]) -> None:
        """Compile ``selectors``; without any, nothing is selected.

        Raises:
            ValueError: a selector or clause can mean nothing; the message begins with
                its index, ``[0].where[1]``, and says what is wrong.
        """
        compiled = [_compile(selector, at) for at, selector in enumerate(selectors)]
        self.types = frozenset(
            name for selector in selectors for name in selector.types if name not in ANY_TYPE
        )
        self.any_type = any(_is_for_any(selector) for selector in selectors)
        self.needed = frozenset(_needed(selectors))
        self._by_type = {name: _predicate(selectors, compiled, name) for name in self.types}
        self._default = _predicate(selectors, compiled, "*") if self.any_type else None

    def lookup(self, event_type: str) -> Predicate | None:
        """What an event of this type must meet; None where the type is not selected."""
        return self._by_type.get(event_type, self._default)


def _predicate(
    selectors: Sequence[Selector], compiled: Sequence[Sequence[_Condition]], name: str
) -> Predicate:
    chosen = [at for at, s in enumerate(selectors) if name in s.types or _is_for_any(s)]
    needed = frozenset(_needed([selectors[at] for at in chosen]))
    return Predicate([compiled[at] for at in chosen], needed)


def _is_for_any(selector: Selector) -> bool:
    return not ANY_TYPE.isdisjoint(selector.types)


def _needed(selectors: Iterable[Selector]) -> Iterable[str]:
    for selector in selectors:
        for clause in selector.where:
            yield from _top_level_keys(clause.property)


def _compile(selector: Selector, at: int) -> list[_Condition]:
    if not selector.types:
        raise ValueError(f'[{at}].types: empty; ["*"] means every type')
    if "" in selector.types:
        raise ValueError(f"[{at}].types: an event type is empty")
    conditions = []
    for number, clause in enumerate(selector.where):
        try:
            conditions.append(_condition(clause))
        except ValueError as error:
            where = f"[{at}].where[{number}] ({clause.property!r} {clause.op})"
            raise ValueError(f"{where}: {error}") from None
    return conditions


def _condition(clause: Clause) -> _Condition:
    read = _reader(clause.property)
    if clause.op not in get_args(Operator):
        raise ValueError(f"op is none of {', '.join(get_args(Operator))}")
    if not clause.values:
        raise ValueError("values is empty")
    negated = clause.op in _NEGATED
    positive = _NEGATED.get(clause.op, clause.op)
    test = _TESTS[positive](clause.values)
    on_missing = positive == "is" and NONE in clause.values

    def condition(event: Mapping[str, Any]) -> bool:
        found = read(event)
        held = any(map(test, found)) if found else on_missing
        return held is not negated

    return condition


# --- Properties ---------------------------------------------------------------------------------

_SCOPES = frozenset({"event", "user", "group"})


def _top_level_keys(name: str) -> tuple[str, ...]:
    if name.partition(".")[0] == "group":
        return ("groups", "group_properties")
    return paths.top_level_keys(paths.parse(name))


def _reader(name: str) -> _Reader:
    scope, _, rest = name.partition(".")
    if not name or (scope in _SCOPES and not rest):
        raise ValueError("property has no name; write event.NAME, user.NAME, group.TYPE or a field")
    if scope == "group":
        return lambda event: _group(event, rest)
    path = paths.parse(name)
    return lambda event: _found(paths.read(path, event))


def _found(value: Any) -> Sequence[Any]:
    return () if value is None else (value,)


def _group(event: Mapping[str, Any], name: str) -> Sequence[Any]:
    names = _group_names(event.get("groups"), name)
    kind, _, rest = name.partition(".")
    return names if names or not rest else _group_properties(event, kind, rest)


def _group_names(groups: Any, kind: str) -> Sequence[Any]:
    names = groups.get(kind) if isinstance(groups, Mapping) else None
    if isinstance(names, list) and len(names) < 2:
        return _found(names[0] if names else None)  # exports write arrays where SDKs write a text
    return _found(names)


def _group_properties(event: Mapping[str, Any], kind: str, name: str) -> Sequence[Any]:
    by_kind = event.get("group_properties")
    by_name = by_kind.get(kind) if isinstance(by_kind, Mapping) else None
    if not isinstance(by_name, Mapping):
        return ()
    some = islice(by_name.values(), MAX_ELEMENTS)
    values = (paths.find(properties, name) for properties in some)
    return [value for value in values if value is not None]


# --- Operators ----------------------------------------------------------------------------------


def _text(value: object) -> str | None:
    """The text by which a value is compared; None for what has none."""
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
    """Return the texts to search in, up to ``MAX_CHARACTERS`` of them all together."""
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
    """A finite number, from a number or from the text of a decimal one; None for all else."""
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
