"""Requests to Amplitude's ingestion endpoints, over HTTPS. No policy: the caller decides."""

from __future__ import annotations

from typing import Final, Protocol, Self

import aiohttp
from yarl import URL

from amplitude_intercom.transports.answering import (
    ABOUT_THE_REQUEST,
    cause_of,
    detail_of,
    read_bounded,
)
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer
from amplitude_intercom.transports.originals import THIS_PROCESS, VIA
from amplitude_intercom.transports.reasons import NoAnswerCause

INGESTION_URLS: Final = {
    "us": "https://api2.amplitude.com",
    "eu": "https://api.eu.amplitude.com",
}
"""By region (HTTP V2 page)."""

LEGACY_URLS: Final = {"us": "https://api.amplitude.com", "eu": "https://api.eu.amplitude.com"}
"""The same of ``LEGACY_PATHS`` (pages of the old SDKs)."""

LEGACY_PATHS: Final = ("/", "/httpapi")

MAX_ANSWER_BYTES: Final = 1 << 20
"""An answer lists two thousand events at most, in several lists."""


class AmplitudeWire(Protocol):
    """A carrier of requests to an Amplitude."""

    async def send(self, request: Original) -> Answer:
        """Send one request and return the whole answer.

        Raises:
            NoAnswer: none came.
        """
        ...


class AmplitudeClient:
    """The wire over HTTPS: one pool of connections, one address."""

    def __init__(
        self, base_url: str, *, timeout_s: float, connections: int, legacy_url: str | None = None
    ) -> None:
        """``legacy_url``: another address for ``LEGACY_PATHS``."""
        self._base_url = base_url.rstrip("/")
        self._legacy_url = (legacy_url or base_url).rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),  # nothing that an answer sets is kept
            auto_decompress=False,  # aiohttp would unpack 64 kB at once, to any size
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={"User-Agent": "amplitude-intercom", "Accept-Encoding": "gzip, deflate"},
            skip_auto_headers=["Content-Type"],  # a request that came without goes on without
        )

    def __repr__(self) -> str:
        return f"AmplitudeClient({self._base_url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def send(self, request: Original) -> Answer:
        """See ``AmplitudeWire``. Redirects are not followed.

        Raises:
            ValueError, TypeError, OverflowError: this request cannot be made, whenever it is tried.
        """
        try:
            return await self._exchange(request)
        except TimeoutError as error:
            raise NoAnswer(NoAnswerCause.TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(cause_of(error), detail_of(error)) from error
        except (NoAnswer, *ABOUT_THE_REQUEST):
            raise
        except Exception as error:  # no thread could be started, no memory was left
            raise NoAnswer(NoAnswerCause.UNFORESEEN, type(error).__name__) from error

    async def _exchange(self, request: Original) -> Answer:
        url = self._legacy_url if request.path in LEGACY_PATHS else self._base_url
        async with self._session.request(
            request.method,
            URL(url + request.target, encoded=True),
            data=request.body or None,
            headers=headers_of(request),
            allow_redirects=False,
        ) as response:
            body = await read_bounded(response, MAX_ANSWER_BYTES)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, body)


def headers_of(request: Original) -> dict[str, str]:
    """Return a request's headers: the type of its body, and the mark of this process."""
    headers = {VIA: THIS_PROCESS}
    if request.content_type.isprintable() and request.content_type:
        headers["Content-Type"] = request.content_type
    if request.peer:
        headers["X-Forwarded-For"] = request.peer
    return headers
