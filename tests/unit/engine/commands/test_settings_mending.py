"""A settings file that a crash has left half written, before it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amplitude_intercom.engine.commands.settings_mending import MENDED, mend
from amplitude_intercom.engine.document.in_place import UNFINISHED
from amplitude_intercom.engine.spool.sqlite.lock import DataDir

REST = "# the rest\n" * 40


def half_written(folder: Path, old: str, new: str, data_dir: str, at: int | None = None) -> Path:
    """Leave a file as a crash in the middle of a write leaves it; return it."""
    path, kept = folder / "settings.toml", folder / data_dir / "settings"
    kept.mkdir(parents=True, mode=0o700)
    (folder / data_dir).chmod(0o700)
    texts = {"path": os.path.realpath(path), "old": old, "new": new}
    (kept / UNFINISHED).write_text(json.dumps(texts), "utf-8")
    at = len(new) // 2 if at is None else at
    path.write_text(new[:at] + old[at:], "utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "data_dir"),
    [
        ('data_dir = "state"', "state"),
        ("data_dir = 'state'", "state"),
        ('"data_dir"="st\\u0061te" # here', "state"),
        ("", "data"),
        ('log = "data_dir"', "data"),
        ('data_dir = "\\q"', "data"),
        ('data_dir = "\\u0000"', "data"),
    ],
)
def test_a_half_written_file_gets_its_old_text(tmp_path: Path, line: str, data_dir: str) -> None:
    old, new = f"{line}\n[log]\n{REST}", f'{line}\n[[sync]]\nname = "{"x" * 300}"\n{REST}'
    path = half_written(tmp_path, old, new, data_dir, at=len(line) + 100)
    assert mend(path) == MENDED
    assert path.read_text("utf-8") == old
    assert mend(path) == ""


def test_a_running_daemon_finishes_its_own_write(tmp_path: Path) -> None:
    path = half_written(tmp_path, "a = 1\n" + REST, "b = 2\n" + REST, "data", at=3)
    half = path.read_bytes()
    with DataDir(tmp_path / "data"):
        assert mend(path) == ""
    assert path.read_bytes() == half
    assert mend(path) == MENDED


def test_texts_of_another_file_or_a_later_text_change_nothing(tmp_path: Path) -> None:
    path = half_written(tmp_path, "a = 1\n" + REST, "b = 2\n" + REST, "data", at=3)
    other = tmp_path / "other.toml"
    other.write_text("data_dir = 'data'\n", "utf-8")
    assert mend(other) == ""
    assert other.read_text("utf-8") == "data_dir = 'data'\n"
    path.write_text("theirs = 1\n", "utf-8")
    assert mend(path) == ""
    assert path.read_text("utf-8") == "theirs = 1\n"


def test_a_damaged_remainder_is_said_and_stops_no_start(tmp_path: Path) -> None:
    path = half_written(tmp_path, "a = 1\n", "b = 2\n", "data")
    (tmp_path / "data" / "settings" / UNFINISHED).write_bytes(b"\xff")
    assert mend(path).startswith("the settings file may be half written: ")


def test_where_nothing_was_begun_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for content in (b"", b"data_dir = 'here'\n", b"\x00\xff" * 1_000, b'data_dir = "' * 9_000):
        path.write_bytes(content)
        assert mend(path) == ""
    assert os.listdir(tmp_path) == ["settings.toml"]
    os.mkfifo(tmp_path / "pipe")
    assert mend(tmp_path / "pipe") == ""
    assert mend(tmp_path / "none") == ""
    assert mend(tmp_path) == ""
