"""Where an event has a property: the one look-up of filter, metadata, users and mapping.

========================  ======================================================================
``event.NAME``            the event property; where there is none, the top-level field of that
                          name, if it is one of ``FIELDS``. ``event.$price`` and its like are the
                          ``price`` of HTTP V2 (``MONEY_FIELDS``)
``user.NAME``             the user property as the event leaves it: ``$set`` wins over a plain key;
                          where there is none, the top-level field, if it is one of ``USER_FIELDS``
``NAME``                  in ``where`` the top-level field itself; in ``metadata`` ``event.NAME``;
                          in ``users.properties`` ``user.NAME``
========================  ======================================================================

- A name with dots is looked up as it stands, else along its dots: ``a.b.c`` is found in
  ``{"a.b.c": 1}``, ``{"a": {"b": {"c": 1}}}``, ``{"a.b": {"c": 1}}`` and ``{"a": {"b.c": 1}}``.
- Amplitude's Export flattens objects. Where ``place`` is missing and ``place.city`` is not,
  ``place`` is the object ``{"city": …}`` again.
- Null counts as missing.
- Top-level fields have the names of HTTP V2, whatever dialect an event is written in.

``$set`` and plain keys are all that an event alone says of its user. What ``$add``, ``$setOnce``
and the other operations leave depends on the old values, so it is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

USER_FIELDS: Final = frozenset(
    "app_version platform os_name os_version device_brand device_manufacturer device_model carrier"
    " country region city dma language paying start_version".split()
)
"""Top-level fields that are user properties to Amplitude (Identify API page)."""

FIELDS: Final = USER_FIELDS | frozenset(
    "event_type user_id device_id time insert_id session_id event_id ip price quantity revenue"
    " productId revenueType currency library user_agent idfa idfv adid android_id location_lat"
    " location_lng partner_id".split()
)
"""Fields of an event itself (HTTP V2 page). Not ``plan``, which is the tracking plan there."""

MONEY_FIELDS: Final = frozenset("price quantity revenue productId revenueType currency".split())
"""Fields that are event properties with a ``$`` to Amplitude (Node SDK, ``Revenue``)."""


def find(holder: Any, name: str) -> Any:
    """Return what an object has under ``name``: as it stands, along its dots, or flattened."""
    if not isinstance(holder, dict):
        return None
    value = holder.get(name)
    if value is None and "." in name:
        value = _walk_dots(holder, name)
    if value is not None:
        return value
    start = name + "."
    if start not in "\n".join(holder):  # most often so, and quicker than a look at each key
        return None
    return _gather(holder, start)


def walk(holder: Any, name: str) -> Any:
    """Return what an object has under ``name`` as it stands, else along its dots."""
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
    """Return the object that was flattened into keys that begin with ``start``."""
    found = {
        key[len(start) :]: value
        for key, value in holder.items()
        if value is not None and key.startswith(start)
    }
    return found or None


def user_properties(given: Any) -> dict[str, Any]:
    """Return the user properties that an event itself says: plain keys, and those of ``$set``."""
    if not isinstance(given, dict):
        return {}
    sets = given.get("$set")
    return {**given, **sets} if isinstance(sets, dict) else given


class Path(NamedTuple):
    """A property of an event: ``scope`` is ``event``, ``user`` or empty (a field of its own).

    ``field`` is the top-level field that stands in for a property that is missing, or empty.
    """

    scope: str
    name: str
    field: str = ""


def parse(text: str, bare: str = "") -> Path:
    """Return the path that a text of the settings means; ``bare``: the scope of one without."""
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
    """Return the property of a decoded event in normal form; None where it is missing."""
    if path.scope == "event":
        value = find(event.get("event_properties"), path.name)
    elif path.scope == "user":
        value = find(user_properties(event.get("user_properties")), path.name)
    else:
        return walk(event, path.name)
    return event.get(path.field) if value is None and path.field else value


def top_level_keys(path: Path) -> tuple[str, ...]:
    """Return the top-level keys of an event that ``read`` looks at."""
    if path.scope:
        holder = f"{path.scope}_properties"
        return (holder, path.field) if path.field else (holder,)
    parts = path.name.split(".")
    return tuple(".".join(parts[: n + 1]) for n in range(len(parts)))
