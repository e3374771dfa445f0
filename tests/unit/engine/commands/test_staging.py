"""Files are written all or none, and leave nothing beside them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from amplitude_intercom.engine.commands.staging import NewFile, refuse_folder, written


class Trouble(Exception):
    """Raised by what comes after the writes."""


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in files}


def test_new_files_have_their_text_and_their_rights(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", "utf-8")
    secret = tmp_path / "deep/er/secret"
    with written([NewFile(tmp_path / "a", "new"), NewFile(secret, "s", mode=0o600)]):
        pass
    assert contents(tmp_path) == {"a": "new", "deep/er/secret": "s"}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.parent.stat().st_mode) == 0o700


def test_trouble_afterwards_brings_the_old_files_back_and_takes_the_new_ones_away(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_text("old", "utf-8")
    (tmp_path / "link").symlink_to("a")
    files = [NewFile(tmp_path / name, "new") for name in ("a", "b", "link", "c/d")]
    with pytest.raises(Trouble) as raised, written(files):
        raise Trouble(*(file.path.read_text("utf-8") for file in files))
    assert raised.value.args == ("new",) * 4
    assert contents(tmp_path) == {"a": "old", "link": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("last", ["folder", "file/below", "x" * 300, "a\udc80/\ud800"])
def test_a_file_that_cannot_be_written_changes_no_other(tmp_path: Path, last: str) -> None:
    (tmp_path / "file").write_text("old", "utf-8")
    (tmp_path / "folder").mkdir()
    files = [NewFile(tmp_path / name, "new") for name in ("file", "new", last)]
    if last.startswith("file/"):
        files = files[1:]
    with pytest.raises((OSError, UnicodeEncodeError)) as raised, written(files):
        raise Trouble
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(tmp_path / last)
    assert contents(tmp_path) == {"file": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    refuse_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    for folder in (tmp_path / "none", Path("/proc")):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - its errno is the system's
            refuse_folder(folder)
        assert raised.value.filename == str(folder)
