"""One process for one data directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.errors import DataDirInUse, SettingsError
from amplitude_intercom.engine.spool.sqlite.lock import DataDir, holder


def test_a_second_process_is_told_the_holder_of_the_directory(tmp_path: Path) -> None:
    with DataDir(tmp_path), pytest.raises(DataDirInUse, match=f"{tmp_path}.*process {os.getpid()}"):
        DataDir(tmp_path)


def test_a_refused_second_one_does_not_take_the_lock_from_the_first(tmp_path: Path) -> None:
    with DataDir(tmp_path):
        for _ in range(3):
            with pytest.raises(DataDirInUse):
                DataDir(tmp_path)


def test_closing_lets_the_next_one_in(tmp_path: Path) -> None:
    DataDir(tmp_path).close()
    with DataDir(tmp_path) as again:
        assert again.path == tmp_path


def test_a_lock_file_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("999999999\n")
    with DataDir(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with DataDir(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "a" / "b" / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_every_user_can_write_in_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(SettingsError, match=f"data_dir: .*mode {mode:04o}"):
        DataDir(tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(("mode", "said"), [(0o755, 1), (0o770, 1), (0o700, 0)])
def test_a_directory_that_others_may_look_into_is_taken_and_said_once(
    tmp_path: Path, mode: int, said: int
) -> None:
    tmp_path.chmod(mode)
    with capture_logs() as lines, DataDir(tmp_path):
        assert len(lines) == said


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="data_dir"):
        DataDir(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_path_that_cannot_be_a_directory_is_a_matter_of_settings(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="data_dir"):
        DataDir(tmp_path / below)


def test_the_holder_of_a_data_directory_is_known_without_taking_it(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with DataDir(tmp_path):
        assert holder(tmp_path) == os.getpid()
    for left in (str(os.getpid()), "999999999", "no number", "-1", "0", "9" * 30):
        (tmp_path / "lock").write_text(left)
        assert holder(tmp_path) is None, left
