"""The selection of events to send: the settings ``[sync.events] select``, compiled.

- Selectors are OR-ed, the ``where`` clauses of one AND-ed. ``rules.operators`` has the rules of a
  single clause.
- The types ``*`` and ``_all`` (Amplitude's REST spelling) are any type.
- A property is ``event.NAME``, ``user.NAME``, ``group.TYPE`` (the names of that type's groups),
  ``group.TYPE.NAME`` (that property of any of them), or a top-level field such as ``country``.
  ``rules.paths`` has the rules of the look-up. Of a type's groups the first 1,000 are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.explanations import (
    ClauseFinding,
    SelectorFinding,
    shown_values,
)
from amplitude_intercom.engine.rules.operators import MAX_ELEMENTS, comparison
from amplitude_intercom.engine.setting_types import ANY_TYPE
from amplitude_intercom.engine.settings import Clause, Selector

_Condition = Callable[[Mapping[str, Any]], bool]
_Reader = Callable[[Mapping[str, Any]], Sequence[Any]]
"""Returns the values of a property: none if it is missing, several if several groups have it."""


class Predicate:
    """The ``where`` clauses that an event of one selected type must meet.

    ``always`` is true if every event of the type passes, so that none need be decoded. ``needed``
    has the top-level keys that ``matches`` reads; it is empty if ``always``.
    """

    __slots__ = ("_alternatives", "always", "needed")

    def __init__(
        self, alternatives: Sequence[Sequence[_Condition]], needed: frozenset[str]
    ) -> None:
        self._alternatives = alternatives
        self.always = not all(alternatives)
        self.needed = frozenset() if self.always else needed

    def matches(self, event: Mapping[str, Any]) -> bool:
        """Return whether a decoded event, in normal form, passes. Never raises for a JSON value."""
        if self.always:
            return True
        return any(
            all(condition(event) for condition in conditions) for conditions in self._alternatives
        )

    def __repr__(self) -> str:
        return f"<Predicate always={self.always} needed={sorted(self.needed)}>"


class Selection:
    """The predicate of each selected type, so that an unselected one costs one look-up.

    ``types`` has the distinct types named in the settings, for a comparison with Intercom's limit
    of 120. ``any_type`` is true if other types may pass too. ``needed`` has the top-level keys that
    any predicate reads.
    """

    def __init__(self, selectors: Sequence[Selector]) -> None:
        """Compile ``selectors``. No selectors select no event.

        Raises:
            ValueError: a selector or clause is invalid. The message begins with its index, as
                ``[0].where[1]``.
        """
        compiled = [_compile(selector, at) for at, selector in enumerate(selectors)]
        self._selectors, self._compiled = selectors, compiled
        self.types = frozenset(
            name for selector in selectors for name in selector.types if name not in ANY_TYPE
        )
        self.any_type = any(_is_for_any(selector) for selector in selectors)
        self.needed = frozenset(_needed(selectors))
        self._by_type = {name: _predicate(selectors, compiled, name) for name in self.types}
        self._default = _predicate(selectors, compiled, "*") if self.any_type else None

    def lookup(self, event_type: str) -> Predicate | None:
        """Return the predicate of an event type; None if the type is not selected."""
        return self._by_type.get(event_type, self._default)

    def explain(self, event_type: str, event: Mapping[str, Any]) -> list[SelectorFinding]:
        """Return each selector with what it wants and what a decoded event, in normal form, has.

        The event is selected where one of them has held. Never raises for a JSON value.
        """
        return [
            _finding(at, selector, compiled, event_type, event)
            for at, (selector, compiled) in enumerate(
                zip(self._selectors, self._compiled, strict=True)
            )
        ]


def _finding(
    at: int,
    selector: Selector,
    compiled: Sequence[_Condition],
    event_type: str,
    event: Mapping[str, Any],
) -> SelectorFinding:
    has_type = event_type in selector.types or _is_for_any(selector)
    where = [
        ClauseFinding(
            clause.property,
            clause.op,
            clause.values,
            shown_values(_reader(clause.property)(event)),
            condition(event),
        )
        for clause, condition in zip(selector.where, compiled, strict=True)
    ]
    held = has_type and all(clause.held for clause in where)
    return SelectorFinding(at, selector.types, has_type, where, held)


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
    test, if_missing, is_negated = comparison(clause.op, clause.values)

    def condition(event: Mapping[str, Any]) -> bool:
        found = read(event)
        held = any(map(test, found)) if found else if_missing
        return held is not is_negated

    return condition


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
        return _found(names[0] if names else None)  # an Export has an array for an SDK's text
    return _found(names)


def _group_properties(event: Mapping[str, Any], kind: str, name: str) -> Sequence[Any]:
    by_kind = event.get("group_properties")
    by_name = by_kind.get(kind) if isinstance(by_kind, Mapping) else None
    if not isinstance(by_name, Mapping):
        return ()
    some = islice(by_name.values(), MAX_ELEMENTS)
    values = (paths.find(properties, name) for properties in some)
    return [value for value in values if value is not None]
