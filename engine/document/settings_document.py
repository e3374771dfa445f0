"""The settings document: the file with its kept versions and its typed secrets.

Rules
=====
1. The text that is replaced is kept as a version first, so that it can come back. If it cannot be
   kept, nothing is saved.
2. Tokens are stored before the text that names them is written. If it is not written, they go.
3. Secrets that only the replaced text names go once the new one is written.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NamedTuple

from amplitude_intercom.engine.document import patches
from amplitude_intercom.engine.document.files import Document, SettingsFile
from amplitude_intercom.engine.document.proposals import (
    Proposal,
    Proposals,
    edited_text,
    present_table,
)
from amplitude_intercom.engine.document.refusals import DocumentError, NotSaved
from amplitude_intercom.engine.document.secret_files import SecretFolder
from amplitude_intercom.engine.document.tables import Path as KeyPath
from amplitude_intercom.engine.document.tables import Table, digest, parsed
from amplitude_intercom.engine.document.versions import KeptVersion, Versions

VERSIONS_FOLDER: Final = "settings"
SECRETS_FOLDER: Final = "secrets"
FOUND: Final = "as it was found"
"""The note of a version that was not saved by the console."""


class Saved(NamedTuple):
    """The new document, and its version; None: it is saved, and could not be kept as a version."""

    document: Document
    kept: KeptVersion | None


class SettingsDocument:
    """Proposals are made with ``propose`` and saved here. All methods block."""

    def __init__(self, file: SettingsFile, versions: Versions, secrets: SecretFolder) -> None:
        self.file = file
        self.versions = versions
        self.secrets = secrets
        self.propose = Proposals(file.path.parent, secrets)

    @classmethod
    def of(cls, path: Path, data_dir: Path) -> SettingsDocument:
        """Return the document at a path; ``data_dir`` is that of the running settings."""
        versions = data_dir / VERSIONS_FOLDER
        secrets = SecretFolder(data_dir / SECRETS_FOLDER, path.parent)
        return cls(SettingsFile(path, versions), Versions(versions), secrets)

    def with_version(self, base: Document, version_id: str) -> Proposal:
        """Propose the text of a kept version. Secrets in files that are gone are missing.

        Raises:
            NoSuchVersion: it is not kept, or damaged.
            NotToml, NotAllowed, SettingsError: it cannot come back.
        """
        return self.propose.with_former_text(base, self.versions.text(version_id))

    def difference(self, proposal: Proposal) -> str:
        """Return the unified difference to the base, with ``***`` for secrets; empty: none.

        Raises:
            CannotMask: the positions of the secrets are not known for sure.
        """
        return patches.difference(proposal.base.text, proposal.text, self.file.path.name)

    def patch(self, proposal: Proposal) -> str:
        """Return a patch of the file, for a person to apply where it can only be read.

        Raises:
            CannotMask: the positions of the secrets are not known for sure.
            CannotPatch: a changed line holds a secret.
        """
        return patches.patch(proposal.base.text, proposal.text, self.file.path.name)

    def save(self, proposal: Proposal, *, who: str, note: str = "") -> Saved:
        """Write a proposal, keep both texts as versions, and forget the secrets that went.

        Raises:
            VersionDiffers, NotWritable, CannotRead, CannotEdit, CannotMask: nothing has changed.
            NotSaved: the disk failed; the message says which text is there.
            SecretRefused: a typed token cannot be one; nothing has changed.
        """
        self.versions.keep(proposal.base.text, who="", note=FOUND)
        text, stored = self._with_tokens_stored(proposal)
        try:
            document = self.file.write(text, proposal.base.version)
        except DocumentError:
            if not self._is_there(text):
                self._discard(stored)
            raise
        self.secrets.forget(present_table(proposal.base), parsed(text))
        return Saved(document, self._kept(text, who, note))

    def _with_tokens_stored(self, proposal: Proposal) -> tuple[str, list[str]]:
        """Store the tokens; return the text that names their files, and these names."""
        table = deepcopy(proposal.table)
        stored: list[str] = []
        try:
            for path in proposal.to_store:
                stored.append(self._stored(table, path))
            text = edited_text(proposal.base, table) if stored else proposal.text
        except DocumentError:
            self._discard(stored)
            raise
        return text, stored

    def _stored(self, table: Table, path: KeyPath) -> str:
        """Store the secret at a path of a table, and name its file there instead."""
        holder: Any = table
        for key in path[:-1]:
            holder = holder[key]
        sync = table["sync"][path[1]].get("name")
        reference = self.secrets.store(f"{sync}-{path[-1]}", holder[path[-1]])
        holder[path[-1]] = reference
        return reference

    def _discard(self, stored: list[str]) -> None:
        for reference in stored:
            self.secrets.discard(reference)

    def _is_there(self, text: str) -> bool:
        try:
            return self.file.read().version == digest(text.encode())
        except DocumentError:
            return True  # nobody knows: a secret too many is better than one too few

    def _kept(self, text: str, who: str, note: str) -> KeptVersion | None:
        try:
            return self.versions.keep(text, who=who, note=note)
        except NotSaved:
            return None
