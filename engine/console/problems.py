"""Refusals of the admin port: one closed table of types, and their form in JSON (RFC 9457).

A handler raises ``Problem``; the guard of the admin port makes the answer of it. ``type`` is an
address on the port itself, with a page of help. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from amplitude_intercom.engine.log_lines import cut, printable
from amplitude_intercom.transports.reasons import Reason

CONTENT_TYPE: Final = "application/problem+json"

HELP: Final = "/help/problems/"
"""The address of a type's page of help begins so; its name follows."""

MAX_DETAIL: Final = 1_024
"""Characters of one text: it may quote what was sent."""

MAX_ERRORS: Final = 100
"""Errors that one answer lists; the rest is counted in a last one."""


class ProblemType(Reason):
    """The kind of a refusal: its name, its title, the remedy; ``STATUSES`` has its HTTP status."""

    BAD_REQUEST = (
        "bad_request",
        "The request cannot be understood",
        "correct what `detail` and `errors` name; `/api/v1/openapi.json` describes every request",
    )
    UNAUTHORIZED = (
        "unauthorized",
        "The admin token is missing or wrong",
        "send `Authorization: Bearer TOKEN` with `admin.token`, or sign in",
    )
    READ_ONLY = (
        "read_only",
        "The token may look, not change",
        "sign in with `admin.token`: `admin.read_token` changes nothing",
    )
    OTHER_HOST = (
        "other_host",
        "This host name is not served",
        "ask by the address of `admin.listen`, or add the name to `admin.hosts`",
    )
    OTHER_ORIGIN = (
        "other_origin",
        "Pages of another origin get nothing",
        "open the console's own page; a program sends `Authorization: Bearer TOKEN`",
    )
    SETTINGS_ARE_VIEWED = (
        "settings_are_viewed",
        "The settings cannot be changed here",
        'change the file: `admin.settings` is "view", or the file can only be read',
    )
    NOT_FOUND = ("not_found", "There is no such thing", "see `detail` for what is missing")
    METHOD_NOT_ALLOWED = (
        "method_not_allowed",
        "The path does not have this method",
        "use a method that the header `Allow` names",
    )
    TOO_SLOW = ("too_slow", "The body took too long", "send the request again, all at once")
    CONFLICT = (
        "conflict",
        "The present state does not allow it",
        "look at the present state, and decide again",
    )
    CHANGED_MEANWHILE = (
        "changed_meanwhile",
        "Somebody else has changed it meanwhile",
        "get it again, make the change on it, and send its new `ETag` in `If-Match`",
    )
    TOO_LARGE = ("too_large", "The request is too large", "send less at once")
    WRONG_MEDIA_TYPE = (
        "wrong_media_type",
        "The body is of another kind than is taken",
        "send `Content-Type: application/json`",
    )
    REFUSED_VALUE = (
        "refused_value",
        "A value is refused",
        "correct each value that `errors` names",
    )
    IF_MATCH_NEEDED = (
        "if_match_needed",
        "The change does not say what it changes",
        "send the `ETag` of what you saw in `If-Match`",
    )
    TOO_MANY_REQUESTS = (
        "too_many_requests",
        "There were too many requests",
        "wait for the seconds of `Retry-After`",
    )
    INTERNAL = ("internal", "This program has a fault", "see the log: it has the fault's traceback")
    UNAVAILABLE = (
        "unavailable",
        "It cannot be done now",
        "wait for the seconds of `Retry-After`; `/readyz` says what is wrong",
    )


STATUSES: Final[Mapping[ProblemType, int]] = {
    ProblemType.BAD_REQUEST: 400,
    ProblemType.UNAUTHORIZED: 401,
    ProblemType.READ_ONLY: 403,
    ProblemType.OTHER_HOST: 403,
    ProblemType.OTHER_ORIGIN: 403,
    ProblemType.SETTINGS_ARE_VIEWED: 403,
    ProblemType.NOT_FOUND: 404,
    ProblemType.METHOD_NOT_ALLOWED: 405,
    ProblemType.TOO_SLOW: 408,
    ProblemType.CONFLICT: 409,
    ProblemType.CHANGED_MEANWHILE: 412,
    ProblemType.TOO_LARGE: 413,
    ProblemType.WRONG_MEDIA_TYPE: 415,
    ProblemType.REFUSED_VALUE: 422,
    ProblemType.IF_MATCH_NEEDED: 428,
    ProblemType.TOO_MANY_REQUESTS: 429,
    ProblemType.INTERNAL: 500,
    ProblemType.UNAVAILABLE: 503,
}
"""The HTTP status of each type."""

_OF_STATUS: Final = {
    **{status: one for one, status in STATUSES.items()},
    403: ProblemType.OTHER_ORIGIN,
}


class FieldError(NamedTuple):
    """An error in one value of the body. ``pointer``: a JSON pointer to it (RFC 6901)."""

    pointer: str
    detail: str


class Problem(Exception):
    """A refusal. ``headers`` are those that its answer has beside its content.

    ``more``: further members of the JSON, as the ``etag`` of the present state.
    """

    def __init__(
        self,
        kind: ProblemType,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(detail or kind.means)
        self.kind = kind
        self.detail = _shown(detail or kind.means)
        self.errors = [FieldError(_shown(one.pointer), _shown(one.detail)) for one in errors]
        self.headers = dict(headers or {})
        self._more = dict(more or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUSES[self.kind]

    @property
    def title(self) -> str:
        """The sentence that all problems of this type share."""
        return self.kind.means

    @property
    def type(self) -> str:
        """The address of the type's page of help."""
        return f"{HELP}{self.kind}"

    def body(self, instance: str = "") -> bytes:
        """Return the JSON. ``instance``: the path of the request."""
        listed = self.errors[:MAX_ERRORS]
        if len(self.errors) > MAX_ERRORS:
            listed.append(FieldError("", f"{len(self.errors) - MAX_ERRORS} more"))
        said = {
            **{name: _shown(v) if isinstance(v, str) else v for name, v in self._more.items()},
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.kind.remedy,
            "instance": _shown(instance),
            "errors": [one._asdict() for one in listed],
        }
        return msgspec.json.encode(said)


def _shown(text: str) -> str:
    """Return a text as it may be shown: bounded, and no character of it controls a terminal."""
    return printable(cut(text, MAX_DETAIL))


def not_now(detail: str, retry_s: int = 10, **more: str) -> Problem:
    """Return that something cannot be done now; it may be tried again after ``retry_s``."""
    headers = {"Retry-After": str(retry_s)}
    return Problem(ProblemType.UNAVAILABLE, detail, headers=headers, more=more)


def refused_value(pointer: str, detail: str) -> Problem:
    """Return the refusal of one value of a request; ``pointer`` as ``FieldError`` has it."""
    return Problem(ProblemType.REFUSED_VALUE, errors=[FieldError(pointer, detail)])


def of_status(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> Problem:
    """Return the problem for an HTTP status that the server itself answers with."""
    kind = _OF_STATUS.get(status)
    if kind is None:
        kind = ProblemType.INTERNAL if status >= 500 else ProblemType.BAD_REQUEST
    return Problem(kind, detail, headers=headers)
