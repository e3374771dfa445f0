"""Changes from the console: checked before anything is read, saved with what belongs to them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.disk import DISK
from amplitude_intercom.engine.document.files import SettingsFile
from amplitude_intercom.engine.document.forms import shown_sync
from amplitude_intercom.engine.document.masking import masked
from amplitude_intercom.engine.document.refusals import (
    CannotEdit,
    NoSuchSync,
    NoSuchVersion,
    NotAllowed,
    NotSaved,
    NotToml,
    NotWritable,
    SecretRefused,
    VersionDiffers,
)
from amplitude_intercom.engine.document.settings_document import FOUND, SettingsDocument
from amplitude_intercom.engine.document.tables import Table, parsed
from amplitude_intercom.engine.errors import SettingsError

TEXT = """\
data_dir = "data"
[admin]
token = "admin-secret"

[[sync]]
name = "a"  # the first
amplitude_api_keys = ["0123456789abcdef"]
[sync.intercom]
access_token = "literal-a"

[[sync]]
name = "b"
intercom = { access_token = "file:token-b", base_url = "https://proxy.example" }
"""
EVIL = "https://evil.example"


@pytest.fixture
def document(tmp_path: Path) -> SettingsDocument:
    (tmp_path / "settings.toml").write_text(TEXT)
    (tmp_path / "token-b").write_text("token-of-b\n")
    return SettingsDocument.of(tmp_path / "settings.toml", tmp_path / "data")


def text_of(document: SettingsDocument) -> str:
    return document.file.path.read_text()


def pause(sync: Table) -> None:
    sync["enabled"] = False


def form_of(document: SettingsDocument, name: str) -> Table:
    syncs = parsed(text_of(document))["sync"]
    return shown_sync(next(sync for sync in syncs if sync["name"] == name))


def secrets_in(document: SettingsDocument) -> list[str]:
    return os.listdir(document.secrets.folder) if document.secrets.folder.exists() else []


def test_a_form_that_toggles_a_sync_changes_one_line(document: SettingsDocument) -> None:
    form = {**form_of(document, "a"), "enabled": False}
    proposal = document.propose.with_sync(document.file.read(), "a", form)
    assert "+enabled = false\n" in document.difference(proposal)
    saved = document.save(proposal, who="mira", note="pause")
    after = TEXT.replace('abcdef"]\n', 'abcdef"]\nenabled = false\n')
    assert text_of(document) == saved.document.text == after
    assert proposal.settings.sync[0].enabled is False


def test_both_texts_are_kept_and_the_first_comes_back(document: SettingsDocument) -> None:
    proposal = document.propose.with_changed_sync(document.file.read(), "a", pause)
    saved = document.save(proposal, who="mira", note="pause")
    new, found = document.versions.kept()
    assert (new, saved.kept) == (saved.kept, new)
    assert (new.who, new.note, found.note) == ("mira", "pause", FOUND)
    back = document.with_version(document.file.read(), found.id)
    document.save(back, who="juno")
    assert text_of(document) == TEXT
    assert len(document.versions.kept()) == 3


def test_a_typed_token_goes_into_a_file_and_the_old_one_is_removed(
    document: SettingsDocument,
) -> None:
    for token in ("first-token", "second-token"):
        proposal = document.propose.with_token(document.file.read(), "a", token)
        assert token not in document.difference(proposal) + repr(proposal)
        document.save(proposal, who="mira")
        assert token not in text_of(document)
        assert re.search(
            r'access_token = "file:data/secrets/a-access_token-\w{16}"', text_of(document)
        )
        (name,) = secrets_in(document)
        assert (document.secrets.folder / name).read_text() == f"{token}\n"


def test_a_typed_token_may_go_to_a_new_address_and_a_kept_one_may_not(
    document: SettingsDocument,
) -> None:
    form = form_of(document, "a")
    form["intercom"]["base_url"] = EVIL
    with pytest.raises(NotAllowed) as refused:
        document.propose.with_sync(document.file.read(), "a", form)
    assert [problem.kind for problem in refused.value.problems] == ["type_again"]
    form["intercom"]["access_token"] = "typed"
    document.save(document.propose.with_sync(document.file.read(), "a", form), who="mira")
    assert "file:data/secrets/a-access_token-" in text_of(document)
    form = form_of(document, "a")
    form["intercom"]["base_url"] = "https://more-evil.example"
    with pytest.raises(NotAllowed):
        document.propose.with_sync(document.file.read(), "a", form)


def test_a_typed_api_key_stays_in_the_text(document: SettingsDocument) -> None:
    form = form_of(document, "a")
    form["amplitude_api_keys"].append("fedcba9876543210")
    document.save(document.propose.with_sync(document.file.read(), "a", form), who="mira")
    assert text_of(document) == TEXT.replace('abcdef"]', 'abcdef", "fedcba9876543210"]')


def test_syncs_come_and_go(document: SettingsDocument) -> None:
    form = {"name": "c", "intercom": {"access_token": "typed", "region": "eu"}}
    document.save(document.propose.with_new_sync(document.file.read(), form), who="mira")
    assert [sync["name"] for sync in parsed(text_of(document))["sync"]] == ["a", "b", "c"]
    assert len(secrets_in(document)) == 1
    document.save(document.propose.without_sync(document.file.read(), "c"), who="mira")
    assert text_of(document) == TEXT
    assert secrets_in(document) == []


def test_a_text_is_saved_with_its_secrets(document: SettingsDocument) -> None:
    typed = masked(TEXT).replace("# the first", "# the very first")
    document.save(document.propose.with_text(document.file.read(), typed), who="mira")
    assert text_of(document) == TEXT.replace("# the first", "# the very first")


def test_an_editor_that_drops_line_ends_and_byte_order_mark_changes_nothing(
    document: SettingsDocument,
) -> None:
    text = "\ufeff" + TEXT.replace("\n", "\r\n")
    document.file.path.write_bytes(text.encode())
    for typed in (masked(TEXT), masked(text)):
        assert document.propose.with_text(document.file.read(), typed).text == text
    document.file.path.write_bytes(TEXT.encode() + b"# mixed\r\n")
    assert document.propose.with_text(document.file.read(), masked(TEXT)).text == TEXT


TEXTS: dict[str, tuple[str, str]] = {
    "another address": ('access_token = "***"\n\n', f'access_token = "***"\nbase_url = "{EVIL}"\n'),
    "another token file": ("file:token-b", "file:/etc/passwd"),
    "a variable": ("file:token-b", "env:HOME"),
    "no admin token": ('token = "***"\n\n[[', "[["),
    "another admin token": ('token = "***"\n\n[[', 'token = "mine"\n[['),
    "a relay": ("[[sync]]", f'[[relay]]\nbase_url = "{EVIL}"\n[[sync]]'),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_is_refused_as_a_form_is(document: SettingsDocument, case: str) -> None:
    typed = masked(TEXT).replace(*TEXTS[case], 1)
    assert typed != masked(TEXT)
    with pytest.raises(NotAllowed):
        document.propose.with_text(document.file.read(), typed)


def test_no_message_tells_whether_a_file_is_there(document: SettingsDocument) -> None:
    said = []
    for path in ("/etc/passwd", "/no/such/file"):
        with pytest.raises(NotAllowed) as refused:
            document.propose.with_text(
                document.file.read(), masked(TEXT).replace("file:token-b", f"file:{path}")
            )
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_what_cannot_be_used_is_refused_by_its_key(document: SettingsDocument) -> None:
    base = document.file.read()
    form = {**form_of(document, "a"), "mapping": {"identifier": "phone"}}
    with pytest.raises(SettingsError, match=r"sync\[0\].mapping.identifier"):
        document.propose.with_sync(base, "a", form)
    with pytest.raises(SettingsError, match="taken by another"):
        document.propose.with_new_sync(base, {"name": "a", "intercom": {"access_token": "typed"}})
    with pytest.raises(NotToml):
        document.propose.with_text(base, "a = ")
    with pytest.raises(NoSuchSync):
        document.propose.without_sync(base, "none")
    with pytest.raises(NoSuchVersion):
        document.with_version(base, "000001-0123456789ab")
    with pytest.raises(CannotEdit, match="name"):
        document.propose.with_sync(base, "a", {**form_of(document, "a"), "name": "z"})


def test_a_file_that_is_not_toml_is_corrected_on_its_machine(document: SettingsDocument) -> None:
    document.file.path.write_text("a = ")
    base = document.file.read()
    with pytest.raises(NotToml, match="machine"):
        document.propose.with_text(base, TEXT)
    with pytest.raises(NotToml, match="machine"):
        document.propose.with_token(base, "a", "typed")


def test_a_version_with_another_access_does_not_come_back(document: SettingsDocument) -> None:
    kept = document.versions.keep(TEXT.replace('token = "admin-secret"', ""), who="mira")
    with pytest.raises(NotAllowed):
        document.with_version(document.file.read(), kept.id)


def test_a_secret_that_is_replaced_does_not_come_to_light_in_a_comment(
    document: SettingsDocument,
) -> None:
    document.file.path.write_text(TEXT + "# literal-a since May\n")
    assert "# *** since May\n" in masked(text_of(document))
    document.save(document.propose.with_token(document.file.read(), "a", "typed"), who="mira")
    assert "# *** since May\n" in text_of(document)


def test_a_settings_file_that_is_nested_without_end_is_refused(document: SettingsDocument) -> None:
    base = document.file.read()
    with pytest.raises(NotToml, match="parts"):
        document.propose.with_text(base, "sources." + "a." * 100_000 + "b = 1")
    with pytest.raises(NotToml, match="deep"):
        document.propose.with_text(base, f"a = {'[' * 90}{']' * 90}")
    form: Table = {}
    for _ in range(5_000):
        form = {"users": form}
    with pytest.raises(NotToml, match="deep"):
        document.propose.with_sync(base, "a", form)


# --- saves that fail ----------------------------------------------------------------------


def with_disk(document: SettingsDocument, **calls: Any) -> SettingsDocument:
    file = SettingsFile(document.file.path, document.secrets.folder, DISK._replace(**calls))
    return SettingsDocument(file, document.versions, document.secrets)


def fails(code: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_that_can_only_be_read_leaves_a_patch(document: SettingsDocument) -> None:
    document = with_disk(document, open=fails(errno.EROFS))
    proposal = document.propose.with_changed_sync(document.file.read(), "a", pause)
    with pytest.raises(NotWritable):
        document.save(proposal, who="mira")
    assert text_of(document) == TEXT
    assert "+enabled = false\n" in document.patch(proposal)
    assert "literal-a" not in document.patch(proposal)


@pytest.mark.parametrize("call", ["open", "write", "sync", "rename"])
def test_a_save_that_fails_leaves_no_secret_behind(document: SettingsDocument, call: str) -> None:
    document = with_disk(document, **{call: fails(errno.EIO)})
    proposal = document.propose.with_token(document.file.read(), "a", "typed")
    with pytest.raises(NotSaved):
        document.save(proposal, who="mira")
    assert text_of(document) == TEXT
    assert secrets_in(document) == []


def test_a_save_of_which_only_the_name_may_be_lost_keeps_its_secret(
    document: SettingsDocument,
) -> None:
    calls = iter([os.fsync, fails(errno.EIO)])
    document = with_disk(document, sync=lambda descriptor: next(calls)(descriptor))
    with pytest.raises(NotSaved, match="the new text is there"):
        document.save(document.propose.with_token(document.file.read(), "a", "typed"), who="mira")
    (name,) = secrets_in(document)
    assert f"file:data/secrets/{name}" in text_of(document)


def test_a_file_that_changed_meanwhile_leaves_no_secret_behind(document: SettingsDocument) -> None:
    proposal = document.propose.with_token(document.file.read(), "a", "typed")
    document.file.path.write_text(TEXT + "# theirs\n")
    with pytest.raises(VersionDiffers):
        document.save(proposal, who="mira")
    assert text_of(document) == TEXT + "# theirs\n"
    assert secrets_in(document) == []


def test_a_token_that_cannot_be_one_changes_nothing(document: SettingsDocument) -> None:
    base = document.file.read()
    with pytest.raises((SettingsError, SecretRefused)):
        document.save(document.propose.with_token(base, "a", "two\nlines"), who="mira")
    assert text_of(document) == TEXT


def test_versions_that_cannot_be_kept_stop_a_save_before_it_begins(
    document: SettingsDocument,
) -> None:
    folder = document.file.path.parent / "data"
    folder.mkdir()
    (folder / "settings").write_text("a file")
    proposal = document.propose.with_changed_sync(document.file.read(), "a", pause)
    with pytest.raises(NotSaved):
        document.save(proposal, who="mira")
    assert text_of(document) == TEXT
