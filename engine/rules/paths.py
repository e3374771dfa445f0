"""Property paths: the one look-up of filter, metadata, users and mapping.

========================  ======================================================================
``event.NAME``            the event property; if there is none, the top-level field of that name,
                          if it is one of ``FIELDS``. ``event.$price`` is the field ``price`` of
                          HTTP V2, and so for all ``MONEY_FIELDS``
``user.NAME``             the user property after the event: ``$set`` wins over a plain key; if
                          there is none, the top-level field, if it is one of ``USER_FIELDS``
``NAME``                  in ``where`` the top-level field itself; in ``metadata`` ``event.NAME``;
                          in ``users.properties`` ``user.NAME``
========================  ======================================================================

- A name with dots is looked up as a whole, else along its dots: ``a.b.c`` is found in
  ``{"a.b.c": 1}``, ``{"a": {"b": {"c": 1}}}``, ``{"a.b": {"c": 1}}`` and ``{"a": {"b.c": 1}}``.
- Amplitude's Export flattens objects. If ``place`` is missing and ``place.city`` is not, ``place``
  is the object ``{"city": …}`` again.
- Null counts as missing.
- Top-level fields have the names of HTTP V2 in every dialect.

The results of ``$add``, ``$setOnce`` and the other operations depend on the old values, which an
event does not have. So only ``$set`` and plain keys are seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

USER_FIELDS: Final = frozenset(
    "app_version platform os_name os_version device_brand device_manufacturer device_model carrier"
    " country region city dma language paying start_version".split()
)
"""Top-level fields that Amplitude counts as user properties (Identify API page)."""

FIELDS: Final = USER_FIELDS | frozenset(
    "event_type user_id device_id time insert_id session_id event_id ip price quantity revenue"
    " productId revenueType currency library user_agent idfa idfv adid android_id location_lat"
    " location_lng partner_id".split()
)
"""Fields of an event (HTTP V2 page), except ``plan``, which is the tracking plan there."""

MONEY_FIELDS: Final = frozenset("price quantity revenue productId revenueType currency".split())
"""Fields that Amplitude also writes as event properties with a ``$`` (Node SDK, ``Revenue``)."""


def find(holder: Any, name: str) -> Any:
    """Return an object's value for ``name``: as a whole, along its dots, or from flattened keys.

    None if there is none, or ``holder`` is no object.
    """
    if not isinstance(holder, dict):
        return None
    value = holder.get(name)
    if value is None and "." in name:
        value = _walk_dots(holder, name)
    if value is not None:
        return value
    start = name + "."
    if start not in "\n".join(holder):  # quicker than a test of each key, and usually true
        return None
    return _gather(holder, start)


def walk(holder: Any, name: str) -> Any:
    """Return an object's value for ``name`` as a whole, else along its dots; else None."""
    if not isinstance(holder, dict):
        return None
    value = holder.get(name)
    if value is not None or "." not in name:
        return value
    return _walk_dots(holder, name)


def _walk_dots(holder: dict[str, Any], name: str) -> Any:
    at = name.find(".")
    while at >= 0:
        inner = holder.get(name[:at])
        if isinstance(inner, dict):
            value = find(inner, name[at + 1 :])
            if value is not None:
                return value
        at = name.find(".", at + 1)
    return None


def _gather(holder: dict[str, Any], start: str) -> dict[str, Any] | None:
    """Return the object that was flattened into the keys with the prefix ``start``."""
    found = {
        key[len(start) :]: value
        for key, value in holder.items()
        if value is not None and key.startswith(start)
    }
    return found or None


def user_properties(given: Any) -> dict[str, Any]:
    """Return the user properties in an event: plain keys, and those of ``$set``."""
    if not isinstance(given, dict):
        return {}
    sets = given.get("$set")
    return {**given, **sets} if isinstance(sets, dict) else given


class Path(NamedTuple):
    """A property of an event. ``scope`` is ``event``, ``user``, or empty for a top-level field.

    ``field`` is the top-level field that replaces a missing property; empty if none does.
    """

    scope: str
    name: str
    field: str = ""


def parse(text: str, bare: str = "") -> Path:
    """Return the path of a text in the settings. ``bare`` is the scope of a text without one."""
    scope, dot, name = text.partition(".")
    if not dot or scope not in _STAND_INS:
        scope, name = bare, text
    return Path(scope, name, _STAND_INS[scope](name) if scope else "")


def _event_field(name: str) -> str:
    plain = name.removeprefix("$")
    known = FIELDS if plain == name else MONEY_FIELDS
    return plain if plain in known else ""


def _user_field(name: str) -> str:
    return name if name in USER_FIELDS else ""


_STAND_INS: Final[Mapping[str, Callable[[str], str]]] = {
    "event": _event_field,
    "user": _user_field,
}


def read(path: Path, event: Mapping[str, Any]) -> Any:
    """Return the property of a decoded event in normal form; None if it is missing."""
    if path.scope == "event":
        value = find(event.get("event_properties"), path.name)
    elif path.scope == "user":
        value = find(user_properties(event.get("user_properties")), path.name)
    else:
        return walk(event, path.name)
    return event.get(path.field) if value is None and path.field else value


def top_level_keys(path: Path) -> tuple[str, ...]:
    """Return the top-level keys of an event that ``read`` needs."""
    if path.scope:
        holder = f"{path.scope}_properties"
        return (holder, path.field) if path.field else (holder,)
    parts = path.name.split(".")
    return tuple(".".join(parts[: n + 1]) for n in range(len(parts)))
