"""Refusals of a local Intercom: a status, a code and a message, as exceptions."""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]


class Refusal(Exception):
    """A call is turned down; ``link`` is the path of a merged contact's heir."""

    def __init__(self, status: int, code: str, message: str, link: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.link = link


def invalid(message: str) -> Refusal:
    """Return the usual 400."""
    return Refusal(400, "parameter_invalid", message)


def not_found(message: str = "User Not Found") -> Refusal:
    """Return the usual 404."""
    return Refusal(404, "not_found", message)


def decode_object(body: bytes) -> Json:
    """Return a body's JSON object.

    Raises:
        Refusal: the body is something else.
    """
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("The request body is not valid JSON") from None
    if not isinstance(sent, dict):
        raise invalid("The request body is not a JSON object")
    return sent
