"""The kinds of values in settings: addresses, names, secrets, operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec

_ADDRESS = r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}\Z"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
_SOURCE = r"^(user_id|device_id|user\..+|event\..+)\Z"
_HEADER = r"\A[A-Za-z0-9-]{0,64}\Z"
_URL = r"^[hH][tT][tT][pP][sS]?://[^\s/?#@]+(/[^\s?#@]*)?\Z"
PATTERNS_IN_WORDS: Final = {
    _ADDRESS: "an address, `host:port` (an IPv6 host in brackets, without a scope)",
    _HEADER: "a header's name: up to 64 letters, digits and `-`",
    _NAME: "a name of up to 64 letters, digits, `-` and `_`",
    _SOURCE: "`user_id`, `device_id`, `user.PROPERTY` or `event.PROPERTY`",
    _URL: "an address, `http://…` or `https://…`, without a user, a password or a query",
}
"""What the patterns ask for, for messages."""

Address = Annotated[str, msgspec.Meta(pattern=_ADDRESS)]
Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
PropertySource = Annotated[str, msgspec.Meta(pattern=_SOURCE)]
HeaderName = Annotated[str, msgspec.Meta(pattern=_HEADER)]
Url = Annotated[str, msgspec.Meta(pattern=_URL)]


SPELLED_OUT: Final = "***"
"""The source of a secret that stands in the settings themselves."""


class Secret:
    """A text that must not be seen; ``reveal()`` is the only way to it.

    ``source`` is how the settings spell it (``env:NAME``), for messages; ``***`` when spelled out.
    """

    __slots__ = ("_read", "_value", "source")

    def __init__(
        self, value: str, source: str = SPELLED_OUT, read: Callable[[], str] | None = None
    ) -> None:
        """``read`` reads it again where it comes from; it raises ``ValueError``."""
        self._value = value
        self._read = read
        self.source = source

    def reveal(self) -> str:
        """Return the text itself, as it was when the settings were read."""
        return self._value

    def reveal_again(self) -> str:
        """Return the text as its file has it now; where that is none, as it was. Reads the file."""
        return self.reread() or self._value

    def reread(self) -> str | None:
        """Return the text as its file has it now; None: it has none. Reads the file."""
        try:
            return self._read() if self._read is not None else self._value
        except ValueError:
            return None

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


ApiKey = Annotated[Secret, msgspec.Meta(extra={"seen_at_end": 4})]
"""An API key of Amplitude. Each app that sends events has it, so its end may be seen."""


def short_key(key: str) -> str:
    """Return an API key as it is named to people."""
    return "* (any)" if key == ANY_KEY else f"{key[:4]}…"


NONE = "(none)"
"""The value that stands for a missing one."""

ANY_KEY = "*"
"""Among API keys: events of any project."""

ANY_TYPE = frozenset({"*", "_all"})
"""Event types in the settings that mean every type."""

Operator = Literal[
    "is",
    "is not",
    "contains",
    "does not contain",
    "<",
    "<=",
    ">",
    ">=",
    "starts with",
    "does not start with",
    "glob",
    "not glob",
    "set contains",
    "set does not contain",
]

Value = str | int | float | bool
