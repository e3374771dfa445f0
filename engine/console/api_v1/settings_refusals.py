"""Refusals of the settings document, as the API has them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from amplitude_intercom.engine.console.api_v1.etags import changed_meanwhile
from amplitude_intercom.engine.console.problems import (
    FieldError,
    Problem,
    ProblemType,
    not_now,
    refused_value,
)
from amplitude_intercom.engine.document.refusals import (
    CannotKeep,
    DocumentError,
    NoSuchSync,
    NoSuchVersion,
    NotAllowed,
    NotSaved,
    NotToml,
    NotWritable,
    SecretRefused,
    TextTooLarge,
    VersionDiffers,
)
from amplitude_intercom.engine.errors import SettingsError

T = TypeVar("T")
Form = dict[str, Any]
"""The settings of a sync, as a form sends them."""

MOST_LEVELS: Final = 60
MOST_VALUES: Final = 20_000
"""Of a form, which is one sync: each value is gone through many times."""

_STEP: Final = re.compile(r"[^.\[\]]+")
_KEYED: Final = re.compile(r"([a-z][\w-]*(?:\.[\w-]+|\[\d+\])*): (.+)", re.DOTALL)


@contextmanager
def document_refusals() -> Iterator[None]:
    """Make a ``Problem`` of each refusal of the document, or of the settings in it."""
    try:
        yield
    except DocumentError as error:
        raise problem_of(error) from None
    except SettingsError as error:
        raise _refused(str(error)) from None


async def in_thread(work: Callable[[], T]) -> T:
    """Do work on the document, which blocks.

    Raises:
        Problem: the document refuses it.
    """
    with document_refusals():
        return await asyncio.to_thread(work)


def problem_of(error: DocumentError) -> Problem:
    """Return a refusal of the document as a problem."""
    match error:
        case VersionDiffers():
            return changed_meanwhile(error.version)
        case NotAllowed():
            errors = [FieldError(pointer(one.path), one.message) for one in error.problems]
            return Problem(ProblemType.REFUSED_VALUE, str(error), errors=errors)
        case CannotKeep():
            errors = [FieldError(pointer(error.path), str(error))]
            return Problem(ProblemType.REFUSED_VALUE, str(error), errors=errors)
        case TextTooLarge():
            return Problem(ProblemType.TOO_LARGE, str(error))
        case NotToml() | SecretRefused():
            return _refused(str(error))
        case NoSuchSync() | NoSuchVersion():
            return Problem(ProblemType.NOT_FOUND, str(error))
        case NotWritable():
            return Problem(ProblemType.SETTINGS_ARE_VIEWED, str(error))
        case NotSaved():
            return not_now(str(error))
    return Problem(ProblemType.CONFLICT, str(error))  # it cannot be read, shown, or edited so


def _refused(text: str) -> Problem:
    """Return the refusal of settings; most messages begin with the key that they are about."""
    key, detail = found.groups() if (found := _KEYED.match(text)) else ("", text)
    errors = [FieldError(pointer(key), detail)]
    return Problem(ProblemType.REFUSED_VALUE, text, errors=errors)


def pointer(path: str) -> str:
    """Return the JSON pointer of a key that messages write as ``sync[0].name``."""
    return "".join(f"/{step}" for step in _STEP.findall(path))


def refuse_unfit(form: Form) -> None:
    """Refuse a form that no settings file holds: with ``null``, or too many levels or values.

    To be called before anything waits: until then a form may be as large as its body decodes to.

    Raises:
        Problem: it is such a form.
    """
    seen, rest = 0, [("/settings", cast("Any", form), MOST_LEVELS)]
    while rest:
        pointer, value, levels = rest.pop()
        seen += 1
        if value is None or not levels:
            detail = "null: leave the key out for its default" if levels else "too many levels"
            raise refused_value(pointer, detail)
        if isinstance(value, dict | list):
            if seen + len(rest) + len(value) > MOST_VALUES:
                raise Problem(ProblemType.TOO_LARGE, f"a form has up to {MOST_VALUES} values")
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            rest += [(f"{pointer}/{key}", inner, levels - 1) for key, inner in pairs]
