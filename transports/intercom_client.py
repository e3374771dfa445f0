"""A wire to Intercom over HTTPS: it sends one request and returns one answer.

No policy: no retry, no pace, no consequence of an answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

import aiohttp

from amplitude_intercom.transports.answering import (
    ABOUT_THE_REQUEST,
    cause_of,
    detail_of,
    read_bounded,
)
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import VERSION, Answer, Request, list_attributes
from amplitude_intercom.transports.reasons import NoAnswerCause

_log = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 512 * 1024
"""An answer longer than this, unpacked, counts as cut off: a contact with 250 attributes, of 255
characters that are all escaped, has 385 kB. As many of them as calls are in flight are in memory at
once."""

MAX_LIST_BYTES: Final = 4 * 1024 * 1024
"""The same for the list of data attributes, of which one is read at a time."""

RENEW_EVERY_S: Final = 1.0
"""Between looks at the token's file while Intercom refuses the token."""

LOG_EVERY_S: Final = 1.0
"""Between two log lines about unforeseen errors: in an outage every call may have one."""

MAX_FRAMES: Final = 12
"""Innermost lines of a traceback that are logged."""


class IntercomClient:
    """The wire over HTTPS: one pool of connections, one token, one base URL.

    The token goes into the session's headers and nowhere else; ``repr`` shows the address only.
    When it is refused (401) it is fetched again, for the calls that come after.
    """

    def __init__(
        self,
        base_url: str,
        access_token: str,
        *,
        timeout_s: float,
        connections: int,
        renewed: Callable[[], str] | None = None,
    ) -> None:
        """``renewed`` returns the token as it is now; it is called in a thread, as it may read."""
        self._base_url = base_url.rstrip("/")
        self._renewed = renewed
        self._renewed_at_s = -math.inf
        self._logged_at_s = -math.inf
        self._renewing: asyncio.Task[None] | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),  # nothing that an answer sets is kept
            auto_decompress=False,  # aiohttp would unpack 64 kB at once, to any size
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={
                "Authorization": f"Bearer {access_token}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
                "Intercom-Version": VERSION,
                "User-Agent": "amplitude-intercom",
            },
        )

    def __repr__(self) -> str:
        return f"IntercomClient({self._base_url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        await self._session.close()

    async def send(self, request: Request) -> Answer:
        """Send one request and read the whole answer. Redirects are not followed.

        Raises:
            NoAnswer: the connection failed, the time-out passed, the answer was cut off, or an
                unforeseen error came: no thread could be started, no memory was left.
            ValueError, TypeError, OverflowError: this request can never be made.
        """
        try:
            return await self._exchange(request)
        except NoAnswer:
            raise
        except TimeoutError as error:
            raise NoAnswer(NoAnswerCause.TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(cause_of(error), detail_of(error)) from error
        except ABOUT_THE_REQUEST:
            raise
        except Exception as error:
            raise self._unforeseen(NoAnswerCause.UNFORESEEN, error) from error

    async def _exchange(self, request: Request) -> Answer:
        headers = {"Content-Type": "application/json"} if request.body is not None else None
        async with self._session.request(
            request.method,
            self._base_url + request.path,
            data=request.body,
            headers=headers,
            allow_redirects=False,
        ) as response:
            try:
                body = await read_bounded(response, _most_bytes(request))
            except (TimeoutError, aiohttp.ClientError, OSError, NoAnswer):
                raise
            except Exception as error:  # its bytes have left, so it may be carried out
                raise self._unforeseen(NoAnswerCause.INCOMPLETE, error) from error
        if response.status == 401:
            self._renew()
        return Answer(response.status, response.headers, body)

    def _unforeseen(self, cause: NoAnswerCause, error: Exception) -> NoAnswer:
        """Return the meaning of an error; log its traceback, at most once in ``LOG_EVERY_S``.

        Its text is left out, because it may quote the request.
        """
        kind, now_s = type(error).__name__, asyncio.get_running_loop().time()
        if now_s >= self._logged_at_s + LOG_EVERY_S:
            self._logged_at_s = now_s
            frames = "".join(traceback.format_tb(error.__traceback__)[-MAX_FRAMES:])
            _log.error("a call failed with an unforeseen %s\n%s", kind, frames)
        return NoAnswer(cause, kind)

    def _renew(self) -> None:
        """Begin to fetch the token again, one at a time and at most once in ``RENEW_EVERY_S``."""
        now_s = asyncio.get_running_loop().time()
        if self._renewed is None or now_s < self._renewed_at_s + RENEW_EVERY_S:
            return
        if self._renewing is None or self._renewing.done():
            self._renewed_at_s = now_s
            self._renewing = asyncio.create_task(self._take_renewed(self._renewed))

    async def _take_renewed(self, renewed: Callable[[], str]) -> None:
        with suppress(Exception):  # the old token stays; the log has its refusal
            token = await asyncio.to_thread(renewed)
            self._session.headers["Authorization"] = f"Bearer {token}"


def _most_bytes(request: Request) -> int:
    is_list = request == list_attributes()
    return MAX_LIST_BYTES if is_list else MAX_ANSWER_BYTES
