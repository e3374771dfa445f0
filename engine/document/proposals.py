"""Changes of the settings document from the console, checked before they are saved.

Rules
=====
1. A proposal is checked in this order: TOML; the secrets that it keeps; the secrets that it would
   give away (``theft``); whether it can be used as settings. Only the last step reads the files
   and variables that the settings name.
2. Forms change ``[[sync]]`` sections. The text editor changes everything but ``[admin]``;
   of ``[sources]`` it can only take some away.
3. A token that was typed into a form goes into a file of its own when the proposal is saved. One
   that was typed into the text stays there, and so does an API key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from amplitude_intercom.engine.config import MAX_FILE_BYTES, from_table
from amplitude_intercom.engine.document import theft
from amplitude_intercom.engine.document.editing import edited
from amplitude_intercom.engine.document.files import Document
from amplitude_intercom.engine.document.forms import sync_with_secrets_kept
from amplitude_intercom.engine.document.masking import with_comments_hidden, with_secrets_kept
from amplitude_intercom.engine.document.refusals import (
    CannotEdit,
    NoSuchSync,
    NotAllowed,
    NotToml,
    TextTooLarge,
)
from amplitude_intercom.engine.document.secret_files import SecretFolder
from amplitude_intercom.engine.document.secret_values import is_reference, secret_values
from amplitude_intercom.engine.document.tables import (
    BOM,
    Table,
    index_of_sync,
    parsed,
    syncs_in,
    written,
)
from amplitude_intercom.engine.document.tables import Path as KeyPath
from amplitude_intercom.engine.settings import Settings, Sync


class Proposal(NamedTuple):
    """A checked change: ``text`` would replace ``base``. Both may hold secrets.

    ``table`` is the text's table, and ``settings`` are its settings. ``to_store``: the keys of the
    tokens that go into files.
    """

    base: Document
    text: str
    table: Table
    settings: Settings
    to_store: Sequence[KeyPath] = ()

    def __repr__(self) -> str:
        return f"Proposal({self.base.version})"

    @property
    def stored_keys(self) -> frozenset[str]:
        """The keys of ``to_store`` as messages write them: they are spelled out here alone."""
        return frozenset(map(written, self.to_store))


class Proposals:
    """Makes proposals; changes nothing. Each method reads the secrets that the settings name.

    All raise ``NotToml``, ``CannotMask``, ``NotAllowed`` and ``SettingsError`` where the change
    cannot be made, and those that edit key by key ``CannotEdit``.
    """

    def __init__(self, folder: Path, secrets: SecretFolder) -> None:
        """``folder``: that of the settings file, at which relative paths start."""
        self._folder = folder
        self._secrets = secrets

    def as_it_is(self, base: Document) -> Proposal:
        """Propose the present text, to look at its settings."""
        return self._proposal(base, base.text, present_table(base))

    def with_text(self, base: Document, typed: str) -> Proposal:
        """Propose a text, with ``***`` for secrets that stay.

        Raises:
            TextTooLarge: no settings file may be as large.
            CannotKeep: a ``***`` stands for no secret of the base.
        """
        if len(typed.encode(errors="surrogatepass")) > MAX_FILE_BYTES:  # before it is parsed
            raise TextTooLarge(f"the text is larger than {MAX_FILE_BYTES} bytes")
        present_table(base)
        kept = with_secrets_kept(_spelled_alike(typed, base.text), base.text)
        return self._proposal(base, kept.text, parsed(kept.text), typed=kept.typed)

    def with_sync(self, base: Document, name: str, form: Table) -> Proposal:
        """Propose other settings of a sync, as ``forms.shown_sync`` shows them.

        Raises:
            NoSuchSync: the settings have none of this name.
            CannotKeep: a secret is kept that is not there.
        """
        if form.get("name", name) != name:
            raise CannotEdit("a sync keeps its name: the spool knows its events by it")
        wanted = present_table(base)
        index = index_of_sync(wanted, name)
        kept = sync_with_secrets_kept({"name": name, **form}, wanted["sync"][index])
        wanted["sync"][index] = kept.table
        return self._of_table(base, wanted, typed=kept.typed)

    def with_new_sync(self, base: Document, form: Table) -> Proposal:
        """Propose another sync, the last of all.

        Raises:
            CannotKeep: a secret is kept, and there is none yet.
        """
        wanted = present_table(base)
        kept = sync_with_secrets_kept(form, None)
        wanted["sync"] = [*syncs_in(wanted), kept.table]
        return self._of_table(base, wanted, typed=kept.typed)

    def with_changed_sync(
        self, base: Document, name: str, change: Callable[[Table], object]
    ) -> Proposal:
        """Propose a sync as ``change`` leaves its table, in which secrets are as in the file.

        Raises:
            NoSuchSync: the settings have none of this name.
        """
        wanted = present_table(base)
        change(wanted["sync"][index_of_sync(wanted, name)])
        return self._of_table(base, wanted)

    def with_token(self, base: Document, name: str, token: str) -> Proposal:
        """Propose another access token of a sync, which was typed.

        Raises:
            NoSuchSync: the settings have none of this name.
        """
        wanted = present_table(base)
        sync = wanted["sync"][index_of_sync(wanted, name)]
        intercom = sync.get("intercom")
        sync["intercom"] = {**(intercom if isinstance(intercom, dict) else {})}
        sync["intercom"]["access_token"] = token
        typed = frozenset[str]() if is_reference(token) else frozenset({token})
        return self._of_table(base, wanted, typed=typed)

    def without_sync(self, base: Document, name: str) -> Proposal:
        """Propose that a sync goes. Its waiting events stay in the spool.

        Raises:
            NoSuchSync: the settings have none of this name.
        """
        wanted = present_table(base)
        del wanted["sync"][index_of_sync(wanted, name)]
        return self._of_table(base, wanted)

    def with_former_text(self, base: Document, text: str) -> Proposal:
        """Propose the text of a kept version: each secret may go again where it went then."""
        table = parsed(text)
        return self._proposal(base, text, table, trusted=[table])

    def _of_table(
        self, base: Document, wanted: Table, *, typed: frozenset[str] = frozenset()
    ) -> Proposal:
        """Return the proposal of an edited table.

        Raises:
            CannotEdit: the text cannot be edited so.
        """
        self._refuse(base, wanted, typed=typed)
        text = edited_text(base, wanted)
        to_store = [
            secret.path
            for secret in secret_values(wanted)
            if secret.value in typed and not secret.seen_at_end and secret.path[0] == "sync"
        ]
        return self._proposal(base, text, wanted, typed=typed)._replace(to_store=to_store)

    def _proposal(self, base: Document, text: str, table: Table, **known: Any) -> Proposal:
        self._refuse(base, table, **known)
        settings = from_table(deepcopy(table), folder=self._folder)
        return Proposal(base, text, table, settings)

    def _refuse(
        self,
        base: Document,
        wanted: Table,
        *,
        typed: frozenset[str] = frozenset(),
        trusted: Sequence[Table] = (),
    ) -> None:
        problems = list(
            theft.problems(
                present_table(base), wanted, typed=typed, secrets=self._secrets, trusted=trusted
            )
        )
        if problems:
            raise NotAllowed(problems)


class ChosenSync(NamedTuple):
    """A sync to be looked at, not saved. ``place``: its index among the settings. ``table``: that
    of their file, with its secrets. ``stored_keys``: as ``Proposal`` has them."""

    sync: Sync
    place: int
    settings: Settings
    table: Table
    stored_keys: frozenset[str]

    def __repr__(self) -> str:
        return f"ChosenSync({self.sync.name})"


def chosen_sync(
    propose: Proposals, base: Document, name: str, form: Table | None = None
) -> ChosenSync:
    """Return a sync as the base has it, or with the settings of a form; for a name that the base
    does not have, they are those of a new sync.

    Raises:
        NoSuchSync: the settings have none of this name.
    """
    if form is None:
        proposal = propose.as_it_is(base)
    else:
        try:
            proposal = propose.with_sync(base, name, form)
        except NoSuchSync:
            proposal = propose.with_new_sync(base, {"name": name, **form})
    settings, place = proposal.settings, index_of_sync(proposal.table, name)
    sync = settings.sync[place]
    return ChosenSync(sync, place, settings, proposal.table, proposal.stored_keys)


def _spelled_alike(typed: str, present: str) -> str:
    """Return a typed text with the line ends and byte order mark that an editor has dropped."""
    if "\r" not in typed and "\n" not in present.replace("\r\n", ""):
        typed = typed.replace("\n", "\r\n")
    return BOM + typed if present.startswith(BOM) and not typed.startswith(BOM) else typed


def edited_text(base: Document, wanted: Table) -> str:
    """Return the base's text, edited, with no former secret shown in a comment.

    Raises:
        CannotEdit: the text cannot be edited so.
        CannotMask: the positions of the secrets are not known for sure.
    """
    return with_comments_hidden(edited(base.text, wanted), base.text)


def present_table(base: Document) -> Table:
    """Return the table of the present text.

    Raises:
        NotToml: it is none; without it nobody knows which secrets a change would give away.
    """
    try:
        return parsed(base.text)
    except NotToml as error:
        raise NotToml(f"the file is {error}; it is corrected on its machine") from None
