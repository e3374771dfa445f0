"""What a transport raises, and what an intake raises to it. One tree:

    TransportError
    ├── NoAnswer       the other side did not answer; nobody knows whether the call was done
    ├── Refused        an intake did not take a batch; nothing of it is stored
    ├── UnknownApiKey  no sync takes a batch; sending it again does not help
    └── BadFile        some of a file, or all, cannot be read; the others can

None says what to do next: that is the decision of whoever catches it.
"""


class TransportError(Exception):
    """Root of everything that transports raise on purpose."""


class NoAnswer(TransportError):
    """No whole answer arrived: refused, reset, timed out or cut off half way.

    ``cause`` is one of ``CAUSES``, ``detail`` what the operating system said.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{CAUSES[cause]} ({detail})" if detail else CAUSES[cause])
        self.cause = cause


CAUSES = {
    "unresolved": "the host name cannot be resolved",
    "refused": "nothing listens there",
    "untrusted": "no encrypted connection: the certificate or protocol does not fit",
    "timeout": "no answer in time",
    "reset": "the connection broke before an answer came",
    "incomplete": "the answer was cut off",
    "unforeseen": "the call failed on this side, in a way that nobody foresaw",
}
"""Why a call has no answer: the closed set, in words."""


REFUSED = {
    "spool_full": "more waits than `spool.max_bytes`",
    "spool_failing": "the spool's disk or file fails",
    "disk_full": "the disk under the spool is full",
    "draining": "the engine is about to end",
    "internal": "a fault of this program; the log has it",
}
"""Why a batch is refused: the closed set, in words."""


class Refused(TransportError):
    """The engine did not take a batch; the sender may send it again later.

    ``reason`` is one of ``REFUSED``.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class UnknownApiKey(TransportError):
    """No sync takes the events of this Amplitude API key."""

    def __init__(self, api_key: str) -> None:
        super().__init__(f"Invalid API key: {api_key}")
        self.api_key = api_key


class BadFile(TransportError):
    """A file, or a member of an archive, is not whole, or holds no events; ``problem`` says why.

    What of it is whole has been read.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
