"""Typed secrets in files of their own, so that the settings name them and can be shown.

Rules
=====
1. A typed secret goes into a new file below ``data_dir/secrets``, of the owner alone. No name is
   given twice: a file that was named beside one address never holds a secret of another.
2. The document names it by ``file:``, relative where the folder lies below the settings file's.
3. The file of a former secret is kept until a document that does not name it is saved. Only
   files that were made here are removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.config import usable_secret
from amplitude_intercom.engine.disk import private_folder, write_whole
from amplitude_intercom.engine.document.refusals import NotSaved, SecretRefused
from amplitude_intercom.engine.document.secret_values import (
    MASK,
    is_mask,
    is_reference,
    secret_values,
)
from amplitude_intercom.engine.document.tables import Table
from amplitude_intercom.engine.setting_types import ANY_KEY

SCHEME: Final = "file:"
MOST_NAME_CHARACTERS: Final = 64
MOST_CHARACTERS: Final = 65_536
"""Of a secret; headers beyond this are refused everywhere."""

_MADE_HERE: Final = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{16}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SecretFolder:
    """The folder of typed secrets. All methods block."""

    def __init__(self, folder: Path, beside: Path) -> None:
        """``folder``: ``data_dir/secrets``. ``beside``: the folder of the settings file."""
        self.folder = Path(os.path.abspath(folder))
        self._beside = Path(os.path.abspath(beside))

    def store(self, name: str, value: str) -> str:
        """Write a secret into a new file; return the ``file:`` that names it in the settings.

        ``name`` is for people. Characters other than letters, digits, ``-`` and ``_`` are left out.

        Raises:
            SecretRefused: the text cannot be a secret.
            NotSaved: the disk fails; nothing has changed.
        """
        if is_reference(value.strip()) or value.strip() == ANY_KEY:
            raise SecretRefused("Expected the secret itself, not the name of one")
        if is_mask(value.strip()):
            raise SecretRefused(f"Expected the secret itself; `{MASK}` is shown instead of one")
        if len(value) > MOST_CHARACTERS:
            raise SecretRefused(f"Expected a secret of at most {MOST_CHARACTERS} characters")
        try:
            content = usable_secret(value)
        except ValueError as error:
            raise SecretRefused(str(error)) from None
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:MOST_NAME_CHARACTERS] or "secret"
        path = self.folder / f"{safe}-{secrets.token_hex(8)}"
        try:
            private_folder(self.folder)
            write_whole(path, f"{content}\n".encode())
        except OSError as error:
            raise NotSaved(f"{self.folder}: {error.strerror}") from error
        return self._reference(path)

    def _reference(self, path: Path) -> str:
        shown = path
        if path.is_relative_to(self._beside):
            shown = path.relative_to(self._beside)
        is_home = str(shown).startswith("~")  # would be read as somebody's home
        return f"{SCHEME}{path if is_home else shown}"

    def path_of(self, reference: str) -> Path | None:
        """Return the file in this folder that a ``file:`` names; None: it names none here.

        Only a plain name directly in the folder is one: no ``..``, no folder between.
        """
        text = reference.removeprefix(SCHEME)
        if text == reference or text.startswith("~") or "\0" in text:
            return None
        path = self._beside / text  # as the settings read it
        is_here = ".." not in path.parts and path.parent == self.folder
        return path if is_here and _NAME.fullmatch(path.name) else None

    def forget(
        self, former: Table, present: Table, remove: Callable[[Path], None] = os.unlink
    ) -> None:
        """Remove the files that a former table of settings named and the present one does not.

        To be called once the present one is saved. A file that cannot be removed is left.
        """
        for path in set(self._named(former)) - set(self._named(present)):
            self._remove(path, remove)

    def discard(self, reference: str) -> None:
        """Remove the file of a secret after a save that failed."""
        path = self.path_of(reference)
        if path is not None:
            self._remove(path, os.unlink)

    def _remove(self, path: Path, remove: Callable[[Path], None]) -> None:
        if _MADE_HERE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                remove(path)

    def _named(self, table: Table) -> Iterator[Path]:
        for secret in secret_values(table):
            path = self.path_of(secret.value) if isinstance(secret.value, str) else None
            if path is not None:
                yield path
