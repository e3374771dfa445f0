"""Versions of what is changed, as ``ETag`` and ``If-Match`` have them (RFC 9110). Pure."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from amplitude_intercom.engine.console.problems import Problem, ProblemType

_TAGS: Final = re.compile(r'\s*(?:W/)?"[\x21\x23-\x7e]*"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e]*"\s*)*')
_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"')


def etag(version: str) -> str:
    """Return the strong ``ETag`` of a version."""
    return f'"{version}"'


def refuse_other(request: web.Request, version: str) -> None:
    """Refuse a change of anything but this version.

    Raises:
        Problem: ``If-Match`` is absent or ``*``, is no list of tags, or names other versions alone.
    """
    given = ",".join(request.headers.getall("If-Match", ()))
    if not given.strip():
        raise Problem(ProblemType.IF_MATCH_NEEDED)
    if given.strip() == "*":  # whatever is there: whoever sends it has seen nothing
        raise Problem(ProblemType.IF_MATCH_NEEDED, "If-Match: `*` names no version")
    if _TAGS.fullmatch(given) is None:
        raise Problem(ProblemType.BAD_REQUEST, 'If-Match: expected tags like "1a2b"')
    if etag(version) not in _TAG.findall(given):  # a weak one never matches
        raise changed_meanwhile(version)


def is_known(request: web.Request, tag: str) -> bool:
    """Return whether ``If-None-Match`` names this tag: the asker has what it stands for."""
    given = ",".join(request.headers.getall("If-None-Match", ()))
    if given.strip() == "*":
        return True
    return _TAGS.fullmatch(given) is not None and any(
        one.removeprefix("W/") == tag for one in _TAG.findall(given)
    )


def changed_meanwhile(version: str) -> Problem:
    """Return the refusal of a change of a version that is not the present one."""
    return Problem(
        ProblemType.CHANGED_MEANWHILE,
        headers={"ETag": etag(version)},
        more={"etag": etag(version)},
    )
