"""Why a change of the settings document is not made, one class for each consequence.

DocumentError
├── CannotRead      there is no document: the path names no settings file that can be shown
├── NotToml         the text is not TOML: the person corrects it
├── TextTooLarge    no settings file may be as large
├── CannotMask      the text cannot be shown without its secrets: it is looked at on the machine
├── CannotKeep      a ``***`` stands for no secret that was there: the person types the secret
├── CannotEdit      the form cannot write it: the text editor or the patch can
├── CannotPatch     the patch would hold a secret: only the masked difference is shown
├── VersionDiffers  the file is another one by now: the change is made again on the new text
├── NotWritable     the file can only be read: the patch is offered, with the path
├── NotSaved        the disk failed: the file is as it was
├── SecretRefused   a typed secret cannot be one
├── NoSuchSync      the settings have no sync of this name
├── NotAllowed      the change would give away a secret, or access: see ``problems``
└── NoSuchVersion   no version of this name is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple


class DocumentError(Exception):
    """Root of the errors of the settings document. No message quotes a secret."""


class CannotRead(DocumentError):
    """The path names no regular file of settings in UTF-8, or it is too large."""


class NotToml(DocumentError):
    """The text is not TOML; the message has the line and column."""


class TextTooLarge(DocumentError):
    """The text has more bytes than a settings file may have."""


class CannotMask(DocumentError):
    """The positions of the secrets in the text are not known for sure."""


class CannotKeep(DocumentError):
    """A mask stands for no secret that was there; ``path`` is its key."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path


class CannotEdit(DocumentError):
    """The text cannot be edited key by key so that it is exactly the wanted table."""


class CannotPatch(DocumentError):
    """A changed line holds a secret."""


class VersionDiffers(DocumentError):
    """The file has changed; ``version`` is the one that it has now."""

    def __init__(self, version: str) -> None:
        super().__init__("the settings file has changed meanwhile")
        self.version = version


class NotWritable(DocumentError):
    """The file at ``path`` can only be read."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path}: can only be read: {detail}")
        self.path = path


class NotSaved(DocumentError):
    """The disk failed; the file is as it was, or the message says where its text is kept."""


class SecretRefused(DocumentError):
    """A typed secret cannot be one; the message does not quote it."""


class NoSuchSync(DocumentError):
    """The settings have no sync of this name."""


class NoSuchVersion(DocumentError):
    """No version of this name is kept, or it is damaged."""


class Objection(NamedTuple):
    """Why a change of one key is not allowed from the console.

    ``kind``: ``type_again`` (its secret has to be typed in the same change), ``not_from_here`` (a
    source, or the name of a secret, that only the file's owner can give), ``access`` (who may use
    the console).
    """

    path: str
    kind: Literal["type_again", "not_from_here", "access"]
    message: str


class NotAllowed(DocumentError):
    """The change would give away a secret, or access to the console."""

    def __init__(self, problems: Sequence[Objection]) -> None:
        super().__init__("; ".join(f"{problem.path}: {problem.message}" for problem in problems))
        self.problems = problems
