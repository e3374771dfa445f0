"""Typed secrets: files of the owner alone, each under a name of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.document.refusals import NotSaved, SecretRefused
from amplitude_intercom.engine.document.secret_files import SecretFolder


def table_of(*tokens: str) -> dict[str, Any]:
    names = "abcdef"
    return {
        "sync": [
            {"name": name, "intercom": {"access_token": token}}
            for name, token in zip(names, tokens, strict=False)
        ]
    }


def test_a_stored_secret_is_read_by_the_settings(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "data" / "secrets", tmp_path)
    reference = secrets.store("a", " token-1\n")
    assert reference.startswith("file:data/secrets/a-")
    settings = from_table(table_of(reference), folder=tmp_path)
    assert settings.sync[0].intercom.access_token.reveal() == "token-1"


def test_file_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    os.chmod(folder, 0o755)
    path = SecretFolder(folder, tmp_path).path_of(SecretFolder(folder, tmp_path).store("a", "t"))
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == [path.name]


def test_a_folder_elsewhere_is_named_by_its_whole_path(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "var" / "secrets", tmp_path / "etc")
    reference = secrets.store("a", "t")
    assert reference.startswith(f"file:{tmp_path}/var/secrets/a-")
    assert secrets.path_of(reference) == Path(reference.removeprefix("file:"))


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "a/b", "~root", ".", "\0", "é", "x" * 999]
)
def test_any_name_becomes_a_safe_one(tmp_path: Path, name: str) -> None:
    secrets = SecretFolder(tmp_path / "secrets", tmp_path)
    path = secrets.path_of(secrets.store(name, "t"))
    assert path is not None
    assert path.parent == tmp_path / "secrets"
    assert path.read_text() == "t\n"


def test_a_folder_that_begins_like_a_home_is_named_by_its_whole_path(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "~root", tmp_path)
    reference = secrets.store("a", "t")
    assert from_table(table_of(reference), folder=tmp_path).sync[0].intercom.access_token


def test_no_name_is_given_twice(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "secrets", tmp_path)
    assert len({secrets.store("a", "t") for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "value", ["", "  ", "a\nb", "ü", "env:X", "file:x", " file:x", "*", "***", "x" * 99_999]
)
def test_a_text_that_can_be_no_secret_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SecretRefused) as refused:
        SecretFolder(tmp_path / "secrets", tmp_path).store("a", value)
    assert "xxx" not in str(refused.value)
    assert not (tmp_path / "secrets").exists()


def test_a_disk_that_fails_is_said(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("a file")
    with pytest.raises(NotSaved, match="secrets"):
        SecretFolder(tmp_path / "secrets", tmp_path).store("a", "t")


def test_a_former_secret_goes_once_the_document_does_not_name_it(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "secrets", tmp_path)
    one, other = secrets.store("a", "1"), secrets.store("b", "2")
    former = table_of(one, other)
    secrets.forget(former, former)
    assert len(os.listdir(secrets.folder)) == 2
    secrets.forget(former, table_of(other, other))
    assert os.listdir(secrets.folder) == [other.rpartition("/")[2]]


def test_files_that_were_not_made_here_are_never_removed(tmp_path: Path) -> None:
    secrets = SecretFolder(tmp_path / "secrets", tmp_path)
    secrets.store("a", "t")
    (secrets.folder / "intercom_access_token").write_text("t")
    (tmp_path / "token-0123456789abcdef").write_text("t")
    named = ["file:secrets/intercom_access_token", "file:token-0123456789abcdef"]
    secrets.forget(table_of(*named), {"sync": []})
    for reference in named:
        secrets.discard(reference)
    assert (secrets.folder / "intercom_access_token").exists()
    assert (tmp_path / "token-0123456789abcdef").exists()


def test_a_file_that_cannot_be_removed_fails_nothing(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    secrets = SecretFolder(tmp_path / "secrets", tmp_path)
    former = table_of(secrets.store("a", "t"))
    secrets.forget(former, {}, remove=refuse)
    assert len(os.listdir(secrets.folder)) == 1
