"""Wires to a local Intercom and a local Amplitude without sockets."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.reasons import NoAnswerCause
from amplitude_intercom.transports.sandbox.faults import NO_ANSWER
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox


class InProcess:
    """A wire to a sandbox, without sockets: latency and faults happen in the caller's loop.

    It sends the sandbox's own token unless another is given.
    """

    def __init__(
        self, sandbox: Sandbox, *, access_token: str | None = None, timeout_s: float = 30.0
    ) -> None:
        token = access_token or sandbox.access_token
        self._sandbox = sandbox
        self._authorization = None if token is None else f"Bearer {token}"
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"InProcess({self._sandbox!r})"

    async def send(self, request: Request) -> Answer:
        """Carry a call out at once, then wait for its answer; cancelling loses the answer only.

        Raises:
            NoAnswer: a fault took the answer, or it comes later than ``timeout_s``.
        """
        reply = self._sandbox.receive(request, self._authorization)
        if reply.cut == "hang" or reply.latency_s >= self._timeout_s:
            await anyio.sleep(self._timeout_s)
            raise NoAnswer(NoAnswerCause.TIMEOUT)
        if reply.latency_s > 0:
            await anyio.sleep(reply.latency_s)
        else:
            await anyio.lowlevel.checkpoint()
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer


class AmplitudeInProcess:
    """A wire to a local Amplitude, without sockets: latency and faults happen in the caller's loop.

    ``sent``: the requests, in order.
    """

    def __init__(self, local: LocalAmplitude, *, timeout_s: float = 30.0) -> None:
        self._local = local
        self._timeout_s = timeout_s
        self.sent: list[Original] = []

    async def send(self, request: Original) -> Answer:
        """Carry a request out at once, then wait for its answer.

        Raises:
            NoAnswer: a fault took it, or it comes later than ``timeout_s``.
        """
        self.sent.append(request)
        headers = {"content-type": request.content_type}
        reply = self._local.receive(
            Request(request.method, request.target, request.body or None), headers
        )
        if reply.cut == "hang" or reply.latency_s >= self._timeout_s:
            await anyio.sleep(self._timeout_s)
            raise NoAnswer(NoAnswerCause.TIMEOUT)
        await anyio.sleep(reply.latency_s)
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer
