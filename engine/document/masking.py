"""The text of a document for an editor: secrets shown as ``***``, and taken back.

Rules
=====
1. A secret that is spelled out is shown as ``***``; an API key of Amplitude as ``***`` and its
   last four characters; ``env:NAME`` and ``file:PATH`` as they are. Comments: see ``comments``.
2. A ``***`` that comes back stands for the secret of the same key. A sync and a relay are known
   by their name, not by their index, so that no secret moves to another one.
3. In a list the ``***`` stands for the secret that was shown so; where several were, for the one
   at the same index.
4. A secret that came without ``***`` was typed: the person knows it.
5. A comment that hides something stays so hidden. Where it would show more beside the new text,
   because its secret is one no longer, or it stands elsewhere, the ``***`` replaces it for good.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from amplitude_intercom.engine.document.comments import Comment, hidden_in, hides
from amplitude_intercom.engine.document.locating import Extent, Located, located, replaced, value_of
from amplitude_intercom.engine.document.refusals import CannotKeep, CannotMask
from amplitude_intercom.engine.document.secret_values import (
    MASK,
    SecretValue,
    is_mask,
    secret_values,
)
from amplitude_intercom.engine.document.tables import Path, Table, written


class KeptText(NamedTuple):
    """A text with its secrets, and those that the person typed. Neither may be shown."""

    text: str
    typed: frozenset[str]

    def __repr__(self) -> str:
        return "KeptText(***)"


def masked(text: str) -> str:
    """Return the text of a document with ``***`` for its secrets.

    Raises:
        NotToml: it is not TOML.
        CannotMask: the positions of its secrets are not known for sure.
    """
    return replaced(text, masks(text))


def masks(text: str) -> list[tuple[Extent, str]]:
    """Return the extents of a text that people must not see, each with its stand-in.

    Raises:
        NotToml: it is not TOML.
        CannotMask: the positions of its secrets are not known for sure.
    """
    seen = _Seen(text)
    return [*seen.values, *seen.comments.items()]


def with_secrets_kept(typed: str, present: str) -> KeptText:
    """Return a typed text in which each ``***`` is the secret that the present text has there.

    Raises:
        NotToml: one of them is not TOML.
        CannotMask: the positions of the secrets are not known for sure.
        CannotKeep: a ``***`` stands for no secret of the present text.
    """
    where, before = located(typed), _Seen(present)
    former = _Former(before.where.table)
    pieces, known = [], set()
    for secret in secret_values(where.table):
        if is_mask(secret.value):
            extent = before.where.values[former.former_of(secret, where.table).path]
            pieces.append((where.values[secret.path], present[extent.start : extent.end]))
        elif isinstance(secret.value, str) and not secret.is_open:
            known.add(secret.value)
    pieces += _comments_kept(typed, where, before)
    return KeptText(_with_comments_hidden(replaced(typed, pieces), before), frozenset(known))


def with_comments_hidden(text: str, former: str) -> str:
    """Return a text with comments that show no more than they did in its former text.

    Raises:
        NotToml: one of them is not TOML.
        CannotMask: the positions of the secrets are not known for sure.
    """
    return _with_comments_hidden(text, _Seen(former))


class _Seen:
    """A text as people see it; ``values`` and ``comments`` are the extents that something hides."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.where = located(text)
        hidden = [secret for secret in secret_values(self.where.table) if not secret.is_open]
        self.values = [(self._extent(secret), json.dumps(secret.shown)) for secret in hidden]
        secrets = {secret.value for secret in hidden if isinstance(secret.value, str)}
        self.comments = dict(self._hidden_comments(secrets))

    def _extent(self, secret: SecretValue) -> Extent:
        extent = self.where.values[secret.path]
        if value_of(self.text[extent.start : extent.end]) != secret.value:
            raise CannotMask(f"{written(secret.path)}: its position in the text is not known")
        return extent

    def _hidden_comments(self, secrets: set[str]) -> Iterator[tuple[Extent, str]]:
        starts = sorted(extent.start for extent in self.where.comments)
        inside: set[int] = set()
        for path, one in self.where.lists.items():
            if hides(_last_key(path)):
                inside.update(starts[bisect(starts, one.start) : bisect(starts, one.end)])
        comments = [
            Comment(self.of(extent), extent.start in inside) for extent in self.where.comments
        ]
        for extent, comment, seen in zip(
            self.where.comments, comments, hidden_in(comments, secrets), strict=True
        ):
            if seen != comment.text:
                yield extent, seen

    def of(self, extent: Extent) -> str:
        """Return the characters of an extent."""
        return self.text[extent.start : extent.end]

    def views(self) -> dict[str, str]:
        """Return each comment as it is seen; one that is shown anywhere is shown."""
        seen = {self.of(extent): shown for extent, shown in self.comments.items()}
        shown = (self.of(extent) for extent in self.where.comments if extent not in self.comments)
        return seen | {comment: comment for comment in shown}


def _last_key(path: Path) -> str:
    return next(key for key in reversed(path) if isinstance(key, str))


def _comments_kept(typed: str, where: Located, before: _Seen) -> Iterator[tuple[Extent, str]]:
    """Yield the comments that came back as they were shown, as they were."""
    originals: dict[str, list[str]] = defaultdict(list)
    for extent, seen in before.comments.items():
        originals[seen].append(before.of(extent))
    for extent in where.comments:
        if originals.get(typed[extent.start : extent.end]):
            yield extent, originals[typed[extent.start : extent.end]].pop(0)


def _with_comments_hidden(text: str, former: _Seen) -> str:
    before = {comment: seen for comment, seen in former.views().items() if comment != seen}
    for is_last in (False, True):
        now = _Seen(text)
        views = now.views()
        more = {c for c in before.keys() & views.keys() if before[c] != views[c]}
        if not more:
            break
        if is_last:  # one that gave way had opened a list, in which others were hidden
            more = before.keys() & views.keys()
        comments = ((extent, now.of(extent)) for extent in now.where.comments)
        text = replaced(text, [(extent, before[c]) for extent, c in comments if c in more])
    return text


class _Former:
    """The secrets of the present document, by their keys."""

    def __init__(self, table: Table) -> None:
        self._by_key: dict[Path, list[SecretValue]] = defaultdict(list)
        for secret in secret_values(table):
            self._by_key[_key(secret.path, table)].append(secret)

    def former_of(self, secret: SecretValue, table: Table) -> SecretValue:
        """Return the secret that a mask stands for.

        Raises:
            CannotKeep: there is none.
        """
        there = self._by_key[_key(secret.path, table)]
        fits = [former for former in there if secret.value in (former.shown, MASK)]
        shown_so = [former for former in fits if former.shown == secret.value] or fits
        if len({former.value for former in shown_so}) > 1:
            shown_so = [former for former in shown_so if former.path[-1] == secret.path[-1]]
        if not shown_so:
            raise CannotKeep(
                written(secret.path),
                f"`{MASK}` stands for the secret that was there, and there was none: type it",
            )
        return shown_so[0]


def _key(path: Path, table: Table) -> Path:
    """Return a path with the names of syncs and relays, and without its index in a list."""
    section, *rest = path
    if section in ("sync", "relay") and rest and isinstance(rest[0], int):
        one = table[section][rest[0]]
        name = one.get("name") if isinstance(one, dict) else None
        rest[0] = name if isinstance(name, str) else rest[0]
    if rest and isinstance(rest[-1], int):
        rest[-1] = -1
    return (section, *rest)
