"""Events of a local Amplitude, and their archives as the Export API makes them."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from amplitude_intercom.transports.sandbox.amplitude_uploads import AmplitudeRefusal, device_of

HOUR_FORMAT: Final = "%Y%m%dT%H"
LONGEST_EXPORT: Final = timedelta(days=365)


class Ingested(msgspec.Struct, frozen=True):
    """A stored event. ``at_s``: Unix time of its arrival, in a request to ``path``.

    ``time_ms``: its own time, corrected, or the time of its arrival where it has none.
    """

    at_s: float
    api_key: str
    path: str
    event: dict[str, Any]
    time_ms: int = 0

    @property
    def device(self) -> str:
        """The device, for order and insert ids."""
        return device_of(self.event)


def keys_of(authorization: str) -> tuple[str, str]:
    """Return the API key and the secret key of a header; empty where it has none."""
    kind, _, code = authorization.partition(" ")
    try:
        key, _, secret = base64.b64decode(code, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return (key, secret) if kind.lower() == "basic" else ("", "")


def hour_of(query: Mapping[str, str], name: str) -> datetime:
    """Return an hour that a query names.

    Raises:
        AmplitudeRefusal: it names none.
    """
    try:
        return datetime.strptime(query.get(name, ""), HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise AmplitudeRefusal(400, f"Invalid {name}: expected YYYYMMDDTHH") from None


def archive_of(events: Sequence[Ingested]) -> bytes:
    """Return events as the Export API packs them: a ZIP of gzipped lines, a member an hour."""
    by_hour: defaultdict[datetime, list[bytes]] = defaultdict(list)
    for found in events:
        at = datetime.fromtimestamp(found.at_s, UTC)
        by_hour[at.replace(minute=0, second=0, microsecond=0)].append(_exported(found, at))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for hour, lines in sorted(by_hour.items()):
            name = f"100/100_{hour:%Y-%m-%d}_{hour.hour}#0.json.gz"
            archive.writestr(name, gzip.compress(b"\n".join([*lines, b""])))
    return packed.getvalue()


def _exported(found: Ingested, at: datetime) -> bytes:
    """Return an event as a line of an export: with other names, and times as texts."""
    event = dict(found.event)
    time_ms = event.pop("time", None)
    when = at if time_ms is None else datetime.fromtimestamp(float(time_ms) / 1000, UTC)
    event["event_time"] = f"{when:%Y-%m-%d %H:%M:%S.%f}"
    event["server_upload_time"] = f"{at:%Y-%m-%d %H:%M:%S.%f}"
    event["$insert_id"] = event.pop("insert_id", None)
    return msgspec.json.encode(event)
