"""The difference of two texts: one for people to look at, without secrets, and one to apply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final, NamedTuple

from amplitude_intercom.engine.document.locating import replaced
from amplitude_intercom.engine.document.masking import masks
from amplitude_intercom.engine.document.refusals import CannotPatch

MOST_LINES: Final = 5_000
"""Changed lines up to which those that stayed are looked for: beyond, all count as changed."""

CONTEXT_LINES: Final = 3


class _Change(NamedTuple):
    """Lines ``start`` to before ``end`` of the old text give way to such lines of the new one."""

    start: int
    end: int
    new_start: int
    new_end: int


_Hunk = list[_Change]


def difference(old: str, new: str, name: str) -> str:
    """Return the unified difference of two documents with ``***`` for their secrets.

    A line of which only the secret changed is there twice. Empty: nothing differs.

    Raises:
        NotToml: one of them is not TOML.
        CannotMask: the positions of the secrets are not known for sure.
    """
    hunks = _hunks(_changes(_lines(old), _lines(new)), CONTEXT_LINES)
    return _unified(hunks, CONTEXT_LINES, (_masked_lines(old), _masked_lines(new)), name)


def patch(old: str, new: str, name: str) -> str:
    """Return a patch that ``patch`` applies to the file, and that has no secret in it.

    It has less context where that would show one; without context ``git apply`` needs
    ``--unidiff-zero``.

    Raises:
        NotToml: one of them is not TOML.
        CannotMask: the positions of the secrets are not known for sure.
        CannotPatch: a changed line holds a secret.
    """
    lines, masked = (_lines(old), _lines(new)), (_masked_lines(old), _masked_lines(new))
    changes = list(_changes(*lines))
    for context in range(CONTEXT_LINES, -1, -1):
        hunks = _hunks(changes, context)
        text = _unified(hunks, context, lines, name)
        if text == _unified(hunks, context, masked, name):
            return text
    raise CannotPatch("a line that changes holds a secret; name it by `env:` or `file:` instead")


def _changes(old: list[str], new: list[str]) -> Iterator[_Change]:
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    if len(middle[0]) + len(middle[1]) > MOST_LINES:
        yield _Change(head, len(old) - tail, head, len(new) - tail)
        return
    for tag, i, j, k, m in SequenceMatcher(None, *middle, autojunk=False).get_opcodes():
        if tag != "equal":
            yield _Change(i + head, j + head, k + head, m + head)


def _common(one: list[str], other: list[str]) -> int:
    """Return how many lines two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _hunks(changes: Iterable[_Change], context: int) -> list[_Hunk]:
    """Return the changes, together where their context touches."""
    hunks: list[_Hunk] = []
    for change in changes:
        if hunks and context and change.start - hunks[-1][-1].end <= 2 * context:
            hunks[-1].append(change)
        else:
            hunks.append([change])
    return hunks


def _unified(
    hunks: Sequence[_Hunk], context: int, texts: tuple[list[str], list[str]], name: str
) -> str:
    lines = [f"--- {name}\n", f"+++ {name}\n"] if hunks else []
    for hunk in hunks:
        lines += _hunk_lines(hunk, context, *texts)
    return "".join(line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}" for line in lines)


def _hunk_lines(hunk: _Hunk, context: int, old: list[str], new: list[str]) -> list[str]:
    first, last = hunk[0], hunk[-1]
    before = min(context, first.start)
    after = min(context, len(old) - last.end)
    start, end = first.start - before, last.end + after
    ranges = _range(start, end), _range(first.new_start - before, last.new_end + after)
    lines = [f"@@ -{ranges[0]} +{ranges[1]} @@\n"]
    for change in hunk:
        lines += [f" {line}" for line in old[start : change.start]]
        lines += [f"-{line}" for line in old[change.start : change.end]]
        lines += [f"+{line}" for line in new[change.new_start : change.new_end]]
        start = change.end
    return lines + [f" {line}" for line in old[start:end]]


_NO_NEWLINE: Final = "\\ No newline at end of file\n"


def _range(first: int, end: int) -> str:
    length = end - first
    return f"{first + 1 if length else first},{length}"


def _lines(text: str) -> list[str]:
    """Return the lines with their ends. Only ``\\n`` ends one, as for ``patch``."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1].removesuffix("\n")
    return lines if lines[-1] else lines[:-1]


def _masked_lines(text: str) -> list[str]:
    """Return the lines of a text without its secrets, as many as it has."""
    pieces = [
        (extent, shown + "\n" * text.count("\n", extent.start, extent.end))
        for extent, shown in masks(text)
    ]
    return _lines(replaced(text, pieces))
