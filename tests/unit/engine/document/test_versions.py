"""KeptText versions: the newest fifty, the owner's alone, and robust against what else is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from amplitude_intercom.engine.document.refusals import NoSuchVersion, NotSaved
from amplitude_intercom.engine.document.versions import MOST_CHARACTERS, MOST_VERSIONS, Versions

TEXT = "\ufeffdata_dir = 'ü'\r\ntoken = 'literal'"


def test_a_version_comes_back_as_it_was(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "settings", now_s=lambda: 12.5)
    kept = versions.keep(TEXT, who="mira", note="a note\nof two lines")
    assert versions.text(kept.id) == TEXT
    assert versions.kept() == [kept]
    assert (kept.who, kept.note, kept.when_ms) == ("mira", "a note\nof two lines", 12_500)


def test_file_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "settings")
    versions.keep(TEXT, who="mira")
    (file,) = (tmp_path / "settings").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_newest_fifty_are_kept_in_order_whatever_the_clock_does(tmp_path: Path) -> None:
    times = iter(range(1_000, 0, -1))
    versions = Versions(tmp_path, now_s=lambda: next(times))
    for number in range(MOST_VERSIONS + 7):
        versions.keep(f"n = {number}", who="mira", note=str(number))
    notes = [kept.note for kept in versions.kept()]
    assert notes == [str(number) for number in range(MOST_VERSIONS + 6, 6, -1)]
    assert len(os.listdir(tmp_path)) == MOST_VERSIONS


def test_the_same_text_twice_is_one_version(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    assert versions.keep("a = 1", who="mira") == versions.keep("a = 1", who="juno")
    versions.keep("a = 2", who="mira")
    versions.keep("a = 1", who="mira")
    assert len(versions.kept()) == 3


def test_a_version_that_cannot_be_forgotten_fails_no_save(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    versions = Versions(tmp_path, remove=refuse)
    for number in range(MOST_VERSIONS + 2):
        versions.keep(f"n = {number}", who="mira")
    assert len(os.listdir(tmp_path)) == MOST_VERSIONS + 2
    assert versions.kept()[0].id.startswith("000052-")


def test_damaged_and_foreign_files_cost_nothing_but_themselves(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    first, cut, flipped, last = (versions.keep(f"n = {n}", who="mira") for n in range(4))
    file_of = {kept: tmp_path / f"{kept.id}.toml" for kept in (first, cut, flipped, last)}
    file_of[cut].write_bytes(file_of[cut].read_bytes()[:-1])
    file_of[flipped].write_bytes(file_of[flipped].read_bytes().replace(b"n = ", b"m = "))
    (tmp_path / "000099-0123456789ab.toml").mkdir()
    (tmp_path / "000098-0123456789ab.toml").symlink_to("/dev/zero")
    (tmp_path / "000097-0123456789ab.toml").write_bytes(b"# [" * 100_000)
    (tmp_path / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / "000096-0123456789ab.toml")
    assert versions.kept() == [last, flipped, first]
    assert versions.text(last.id) == "n = 3"
    for damaged in (cut, flipped):
        with pytest.raises(NoSuchVersion):
            versions.text(damaged.id)
    newest = versions.keep("n = 5", who="mira")
    assert newest.id.startswith("000100-")
    assert versions.kept()[0] == newest


@pytest.mark.parametrize("name", ["", "../x", "000001-0123456789ab", "x" * 9_999, "000001\0"])
def test_a_version_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoSuchVersion):
        Versions(tmp_path).text(name)


def test_a_folder_that_is_not_there_has_no_versions(tmp_path: Path) -> None:
    assert Versions(tmp_path / "none").kept() == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("a file")
    with pytest.raises(NotSaved):
        Versions(tmp_path / "settings").keep("a = 1", who="mira")


def test_any_name_and_note_can_be_kept(tmp_path: Path) -> None:
    kept = Versions(tmp_path).keep("a = 1", who="\ud800\0\n" * 999, note="\U0001f600" * 999)
    assert Versions(tmp_path).kept() == [kept]


def test_long_names_and_notes_are_cut(tmp_path: Path) -> None:
    kept = Versions(tmp_path).keep("a = 1", who="w" * 9_999, note="ü\n" * 9_999)
    assert (len(kept.who), len(kept.note)) == (MOST_CHARACTERS, MOST_CHARACTERS)
    assert Versions(tmp_path).kept() == [kept]
