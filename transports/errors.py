"""What a transport raises, and what an intake raises to it. One tree:

    TransportError
    ├── NoAnswer       the other side did not answer; nobody knows whether the call was done
    ├── Refused        an intake did not take a batch; nothing of it is stored
    ├── UnknownApiKey  no sync takes a batch; sending it again does not help
    ├── UnknownSync    there is no sync of the name that a batch is for; nor does it here
    └── BadFile        some of a file, or all, cannot be read; the others can

None says what to do next: that is the decision of whoever catches it.
"""

from amplitude_intercom.transports.reasons import NoAnswerCause, RefusalReason


class TransportError(Exception):
    """Root of everything that transports raise on purpose."""


class NoAnswer(TransportError):
    """No whole answer arrived: refused, reset, timed out or cut off half way.

    ``detail``: what the operating system said.
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
    """There is no sync of the name that a batch says it is for."""


class BadFile(TransportError):
    """A file, or a member of an archive, is not whole, or holds no events; ``problem`` says why.

    What of it is whole has been read.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
