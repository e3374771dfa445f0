"""Errors that a transport raises, or an intake raises to it. One tree:

    TransportError
    ├── NoAnswer       the other side did not answer; the call may have been carried out or not
    ├── Refused        an intake did not take a batch; nothing of it is stored
    ├── UnknownApiKey  no sync takes a batch; sending it again does not help
    ├── UnknownSync    a batch names a sync that does not exist; nor does it here
    └── BadFile        a file cannot be read, or only in part; other files can

The caller decides the consequence.
"""

from amplitude_intercom.transports.reasons import NoAnswerCause, RefusalReason


class TransportError(Exception):
    """Root of everything that transports raise on purpose."""


class NoAnswer(TransportError):
    """No whole answer arrived: refused, reset, timed out or cut off half way.

    ``detail``: the words of the operating system.
    """

    def __init__(self, cause: NoAnswerCause, detail: str = "") -> None:
        super().__init__(f"{cause.means} ({detail})" if detail else cause.means)
        self.cause = cause


class Refused(TransportError):
    """The engine did not take a batch; the sender may send it again later.

    ``reason`` is one of ``UNTAKEN``.
    """

    def __init__(self, reason: RefusalReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class UnknownApiKey(TransportError):
    """No sync takes the events of this Amplitude API key."""

    def __init__(self, api_key: str) -> None:
        named = f"Invalid API key: {api_key}" if api_key else "no API key, and no sync, is named"
        super().__init__(named)
        self.api_key = api_key


class UnknownSync(TransportError):
    """A batch names a sync that does not exist."""


class BadFile(TransportError):
    """A file, or a member of an archive, is not whole, or holds no events; ``problem`` says why.

    Its readable part has been read.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
