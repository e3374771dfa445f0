"""A typed client of Amplitude's Export API: the events of some hours, as a ZIP on disk.

Rules
=====
- An answer counts when the API describes it. 200 brings a ZIP with its list of members at the end;
  a page with 200, or a cut body, is no answer.
- An export is written to a ``.part`` file first, and renamed once it is whole and on disk. The time
  of the file is the moment of the request: events that Amplitude accepted later are missing.
- Each error is a consequence; to wait, to ask for less or to give up is the caller's decision:

      TransportError
      ├── ExportDelayed   the same question may be answered later
      ├── ExportTooLarge  fewer hours may be answered
      └── KeysRefused     no question is answered until the keys are changed

Facts: Export API page (hours are those of ``server_upload_time``, in UTC, both ends included).
"""

from __future__ import annotations

import asyncio
import os
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

import aiohttp
import anyio.to_thread
import msgspec

from amplitude_intercom.transports import files
from amplitude_intercom.transports.answering import cause_of
from amplitude_intercom.transports.errors import TransportError
from amplitude_intercom.transports.intercom import as_text
from amplitude_intercom.transports.kinds import NotEvents
from amplitude_intercom.transports.reasons import NoAnswerCause

BASE_URLS: Final[Mapping[str, str]] = {
    "us": "https://amplitude.com",
    "eu": "https://analytics.eu.amplitude.com",
}
"""Regional hosts (Export API page)."""

PATH: Final = "/api/2/export"

LATE_S: Final = 2 * 3600.0
"""Until an hour that has passed can be exported whole (Export API page)."""

MAX_EXPORT_BYTES: Final = 4 << 30
"""Largest export that Amplitude makes (Export API page)."""

LONGEST_RETRY_AFTER_S: Final = 900.0
"""Longest wait that an answer can ask for; more is taken for this."""

CONNECT_S: Final = 30.0
PIECE_BYTES: Final = 262_144
"""Bytes of an export in memory at once."""

MAX_SAID_BYTES: Final = 2_048
MAX_SAID: Final = 200
"""Bytes of an error that are read, and characters of it that are kept."""

HOUR_S: Final = 3600
_API_HOUR: Final = "%Y%m%dT%H"
_HOUR_FORMATS: Final = (_API_HOUR, "%Y-%m-%dT%H")
_DAY_FORMAT: Final = "%Y-%m-%d"


class ExportDelayed(TransportError):
    """There was no answer, or the answer puts off the export.

    ``retry_after_s``: the wait that the answer asks for, or None.
    """

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class ExportTooLarge(TransportError):
    """The hours are too many for one export.

    ``can_pass``: the same hours may be answered at another time, because it only took too long.
    """

    def __init__(self, why: str, *, can_pass: bool = False) -> None:
        super().__init__(why)
        self.can_pass = can_pass


class KeysRefused(TransportError):
    """The API key and the secret key belong to no project, or must not export it."""


# --- hours --------------------------------------------------------------------------------


class Span(NamedTuple):
    """Hours from ``first`` to ``last``, both included; an hour is a count of hours since 1970."""

    first: int
    last: int

    @property
    def hours(self) -> int:
        """Number of hours."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        """In the spelling of the Export API, ``20240514T00-20240514T05``."""
        return f"{_spelled(self.first, _API_HOUR)}-{_spelled(self.last, _API_HOUR)}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the hours of a text in the form of ``str``.

        Raises:
            ValueError: it is spelled otherwise, or its end is before its start.
        """
        first, _, last = text.partition("-")
        span = cls(parse_hour(first), parse_hour(last))
        if span.hours < 1:
            raise ValueError(f"`{text}` ends before it begins")
        return span

    @property
    def whole_at_s(self) -> float:
        """Unix second from which all of it can be exported."""
        return (self.last + 1) * HOUR_S + LATE_S


def last_whole_hour(now_s: float) -> int:
    """Return the last hour that can be exported whole at an instant, in Unix seconds."""
    return int((now_s - LATE_S) // HOUR_S) - 1


def show_hour(hour: int) -> str:
    """Return an hour for people: ``2024-05-14T09``."""
    return _spelled(hour, _HOUR_FORMATS[1])


def _spelled(hour: int, form: str) -> str:
    return datetime.fromtimestamp(hour * HOUR_S, UTC).strftime(form)


def parse_hour(text: str, *, ends: bool = False) -> int:
    """Return an hour, written ``20240514T09`` or ``2024-05-14T09``; of a day its first hour, or
    its last one where it ``ends`` a span.

    Raises:
        ValueError: it is written otherwise.
    """
    for form in _HOUR_FORMATS:
        if (found := _parsed(text, form)) is not None:
            return found
    day = _parsed(text, _DAY_FORMAT)
    if day is None:
        raise ValueError(f"`{text}` is no hour; write it as 2024-05-14T09, or a day as 2024-05-14")
    return day + 23 * ends


def _parsed(text: str, form: str) -> int | None:
    """Return the hour of a text in exactly this form: ``strptime`` alone takes `2024-5-1` too."""
    try:
        found = datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(found.timestamp()) // HOUR_S if found.strftime(form) == text else None


# --- answers ------------------------------------------------------------------------------


def consequence(status: int, said: str, retry_after_s: float | None = None) -> TransportError:
    """Return the consequence of an answer without an export; ``said`` are its own words."""
    words = f"{status}: {said}" if said else str(status)
    if status in (401, 403):
        return KeysRefused(words)
    if status in (400, 413, 504):
        return ExportTooLarge(words, can_pass=status == 504)
    return ExportDelayed(f"it answers {words}", retry_after_s)


def parse_retry_after(text: str | None, now_s: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks to wait, as a number or a date (RFC 9110,
    10.2.3), within bounds; None without a readable value."""
    if not text:
        return None
    try:
        wait_s = int(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - now_s
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait_s), LONGEST_RETRY_AFTER_S)


class _Said(msgspec.Struct):
    error: str


def is_foreign(body: bytes) -> bool:
    """Whether a 404 is not Amplitude's own; only Amplitude's means an hour without data.

    Its body is undocumented, but it is neither a page nor a list of errors like Intercom's."""
    return body.lstrip().startswith(b"<") or b"error.list" in body


def say_of(body: bytes) -> str:
    """Return the text of an error's body in one line; nothing for a page."""
    try:
        text = msgspec.json.decode(body, type=_Said).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = "" if body.lstrip().startswith(b"<") else body.decode("utf-8", "replace")
    return as_text(" ".join(text.split()))[:MAX_SAID]


def check_whole(path: Path) -> None:
    """Check that a file is a ZIP with a list of members; blocks.

    Raises:
        OSError: it cannot be read.
        ExportDelayed: it is no such ZIP, so the answer was no export.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start not in (b"PK\x03\x04", b"PK\x05\x06"):
            raise ExportDelayed("its answer is no ZIP" if start else "its answer is empty")
        try:
            files.open_archive(file).close()
        except (zipfile.BadZipFile, NotEvents, EOFError, ValueError) as error:
            raise ExportDelayed(f"its answer is no whole ZIP: {error}") from None


# --- the client ---------------------------------------------------------------------------


class ExportClient:
    """Fetches exports of one project. The keys go into the session's headers and nowhere else."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        secret_key: str,
        *,
        timeout_s: float = 600.0,
        max_bytes: int = MAX_EXPORT_BYTES,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``timeout_s``: longest time without a byte; Amplitude packs an export before it answers.

        An export that is longer than ``max_bytes`` is too large."""
        self._base_url = base_url.rstrip("/")
        self._secrets = (api_key, secret_key)
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=timeout_s),
            headers={
                "Authorization": f"Basic {b64encode(f'{api_key}:{secret_key}'.encode()).decode()}",
                "Accept-Encoding": "identity",
                "User-Agent": "amplitude-intercom",
            },
        )

    def __repr__(self) -> str:
        return f"ExportClient({self._base_url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def fetch(
        self, span: Span, path: Path, came: Callable[[int], None] = lambda count: None
    ) -> bool:
        """Write the events of some hours to a file; return False where there are none.

        ``came`` is called with the bytes of each piece. Cancelled, it leaves no file behind.

        Raises:
            ExportDelayed, ExportTooLarge, KeysRefused: there is no export.
            OSError: it cannot be written.
        """
        part = path.with_suffix(".part")
        try:
            return await self._exchange(span, path, part, came)
        except TimeoutError:
            raise ExportDelayed(NoAnswerCause.TIMEOUT.means) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ExportDelayed(cause_of(error).means) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(part)) from None
        finally:
            part.unlink(missing_ok=True)

    async def _exchange(
        self, span: Span, path: Path, part: Path, came: Callable[[int], None]
    ) -> bool:
        start, _, end = str(span).partition("-")
        asked_s = self._now_s()
        url = f"{self._base_url}{PATH}?start={start}&end={end}"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status == 404:
                if is_foreign(await self._beginning(response)):
                    raise ExportDelayed("404 of somebody else: a page, or another API's error")
                return False
            if response.status != 200:
                raise await self._error(response)
            if (response.content_length or 0) > self._max_bytes:
                raise self._too_long()
            with await anyio.to_thread.run_sync(_opened, part) as file:
                await self._write(response, file, came)
                await anyio.to_thread.run_sync(_finish, file, part, path, asked_s)
        return True

    async def _write(
        self, response: aiohttp.ClientResponse, file: IO[bytes], came: Callable[[int], None]
    ) -> None:
        written = 0
        async for piece in response.content.iter_chunked(PIECE_BYTES):
            written += len(piece)
            if written > self._max_bytes:
                raise self._too_long()
            await anyio.to_thread.run_sync(file.write, piece)
            came(len(piece))

    async def _error(self, response: aiohttp.ClientResponse) -> TransportError:
        said = say_of(await self._beginning(response))
        for secret in self._secrets:
            said = said.replace(secret, "***")
        wait_s = parse_retry_after(response.headers.get("Retry-After"), self._now_s())
        return consequence(response.status, said, wait_s)

    async def _beginning(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the beginning of a body, enough for its message."""
        try:
            return await response.content.readexactly(MAX_SAID_BYTES)
        except asyncio.IncompleteReadError as error:
            return error.partial

    def _too_long(self) -> ExportTooLarge:
        return ExportTooLarge(f"longer than max_bytes, {self._max_bytes}")


def _opened(part: Path) -> IO[bytes]:
    """Open a file that only its owner can read, because it holds personal data."""
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
    return os.fdopen(os.open(part, flags, 0o600), "wb")


def _finish(file: IO[Any], part: Path, path: Path, asked_s: float) -> None:
    """Check an export, write it to disk, then give it its name."""
    file.flush()
    check_whole(part)
    os.fsync(file.fileno())
    os.utime(part, (asked_s, asked_s))
    part.rename(path)
