"""Whether a source takes the arguments that ``[sources.NAME]`` gives it, by its signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

import msgspec


def problems(
    source: type[Any], arguments: Mapping[str, Any], syncs: Sequence[str]
) -> Iterator[str]:
    """Yield errors, each beginning with the argument's name. No value but a sync's is quoted.

    ``syncs`` are the names that an argument called ``sync`` can have. A source that has one needs
    it, unless it is given the ``api_key`` of an Amplitude project.
    """
    parameters = inspect.signature(source).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [
        parameter.name
        for parameter in parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    for name in arguments:
        if name not in named and not takes_any:
            yield f"{name}: this source has no such setting; it has {', '.join(named)}"
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            yield f"{name}: missing, and this source needs it"
    yield from _of_wrong_type(source, arguments)
    if "sync" in named and "api_key" not in arguments:
        yield from _sync_problems(arguments.get("sync"), syncs)


def _of_wrong_type(source: type[Any], arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        try:
            msgspec.convert(value, _hints(source)[name], dec_hook=_not_known)
        except msgspec.ValidationError as error:
            yield f"{name}: {error}"
        except (KeyError, TypeError, NotImplementedError):
            continue  # no annotation, or one that only the source itself understands


def _hints(source: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(source.__init__, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _not_known(kind: type, value: Any) -> Any:
    raise NotImplementedError(kind)


def _sync_problems(sync: object, syncs: Sequence[str]) -> Iterator[str]:
    if sync is None:
        yield f"sync: missing; it says which sync takes what comes: {', '.join(syncs)}"
    elif sync not in syncs:
        yield f"sync: there is no sync `{sync}`; there is {', '.join(syncs)}"
