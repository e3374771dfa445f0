"""Searching contacts: the filters of a query, compiled to a test."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from amplitude_intercom.transports.sandbox.contacts import Contact
from amplitude_intercom.transports.sandbox.refusals import Json, Refusal, invalid

MAX_FILTERS: Final = 15  # of one AND or OR group (API description, search)
_SORT_ORDERS: Final = ("ascending", "descending")


_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "IN": lambda have, wanted: have in wanted,
    "NIN": lambda have, wanted: have not in wanted,
}


def _value_of(contact: Contact, field: str) -> object:
    group, _, name = field.partition(".")
    if group == "custom_attributes":
        return contact.custom_attributes.get(name)
    return getattr(contact, field, None)


def compile_filter(query: object, level: int = 0) -> Callable[[Contact], bool]:
    """Return the test that a search's query asks for (API description, "Search contacts").

    Raises:
        Refusal: an unknown operator, more than two levels or too many filters.
    """
    if not isinstance(query, dict):
        raise invalid("query is invalid")
    if query.get("operator") in ("AND", "OR"):
        return _compile_group(query, level + 1)
    return _compile_comparison(query)


def _compile_group(query: Json, level: int) -> Callable[[Contact], bool]:
    filters = query.get("value")
    if level > 2 or not isinstance(filters, list) or not 1 <= len(filters) <= MAX_FILTERS:
        raise invalid("Too many or too deeply nested filters")
    tests = [compile_filter(each, level) for each in filters]
    join = all if query["operator"] == "AND" else any
    return lambda contact: join(test(contact) for test in tests)


def _compile_comparison(query: Json) -> Callable[[Contact], bool]:
    field, wanted = query.get("field"), query.get("value")
    compare = _COMPARE.get(str(query.get("operator")))
    is_list = isinstance(wanted, list)
    if (
        compare is None
        or not isinstance(field, str)
        or is_list != (query["operator"] in ("IN", "NIN"))
    ):
        raise invalid("query is invalid")
    return lambda contact: compare(_value_of(contact, field), wanted)


def sort_contacts(contacts: list[Contact], sort: object) -> None:
    """Sort contacts in place, as a search asks for.

    Raises:
        Refusal: an unknown order.
    """
    if not isinstance(sort, dict):
        return
    field, order = str(sort.get("field")), sort.get("order", "descending")
    if order not in _SORT_ORDERS:
        text = f"Invalid sort order '{order}'. Must be one of: ascending, descending"
        raise Refusal(400, "invalid_sort_order", text)
    contacts.sort(key=lambda each: str(getattr(each, field, "")), reverse=order == "descending")
