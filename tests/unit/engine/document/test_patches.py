"""Differences for people, and patches that the tools of the machine apply."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from amplitude_intercom.engine.document.patches import MOST_LINES, difference, patch
from amplitude_intercom.engine.document.refusals import CannotPatch

FILLER = "".join(f"# line {n}\n" for n in range(10))
OLD = f'{FILLER}[[sync]]\nname = "a"\nenabled = true\n{FILLER}[admin]\ntoken = "secret-1"\n{FILLER}'
ENDS = ["\n", "\r\n"]


def applied(tmp_path: Path, old: str, text: str) -> str:
    """Return a text as ``patch`` leaves it."""
    (tmp_path / "s.toml").write_bytes(old.encode())
    subprocess.run(
        ["patch", "--binary", "--no-backup-if-mismatch", "s.toml"],
        input=text.encode(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return (tmp_path / "s.toml").read_bytes().decode()


CHANGES = {
    "a key": OLD.replace("true", "false"),
    "several": "# first\n" + OLD.replace("true", "false") + "# last",
    "gone": OLD.replace('name = "a"\n', ""),
    "no newline": OLD.rstrip("\n"),
    "beside a secret": OLD.replace("[admin]\n", '[admin]\nlisten = "127.0.0.1:1"\n'),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_patch_makes_the_new_text_and_shows_no_secret(
    tmp_path: Path, change: str, end: str
) -> None:
    old, new = OLD.replace("\n", end), CHANGES[change].replace("\n", end)
    text = patch(old, new, "s.toml")
    assert "secret-1" not in text
    assert applied(tmp_path, old, text) == new


def test_git_takes_it_too(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(OLD)
    text = patch(OLD, CHANGES["several"], "s.toml")
    git = ["git", "apply", "--unsafe-paths", "-p0"]
    subprocess.run(git, input=text.encode(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "s.toml").read_text() == CHANGES["several"]


def test_a_patch_of_a_line_with_a_secret_is_refused() -> None:
    old = 'sync = [{ name = "a", intercom = { access_token = "literal", region = "us" } }]\n'
    with pytest.raises(CannotPatch, match="env:"):
        patch(old, old.replace('"us"', '"eu"'), "s.toml")


def test_texts_that_do_not_differ_have_no_difference() -> None:
    assert difference(OLD, OLD, "s.toml") == patch(OLD, OLD, "s.toml") == ""


def test_a_secret_that_changed_is_there_twice_and_not_to_be_seen() -> None:
    text = difference(OLD, OLD.replace("secret-1", "secret-2"), "s.toml")
    assert '-token = "***"\n+token = "***"\n' in text
    assert "secret" not in text


def test_a_secret_of_several_lines_leaves_the_other_lines_where_they_are() -> None:
    old = '[admin]\ntoken = """a\nsecret\nof lines"""\nlisten = "a:1"\n'
    text = difference(old, old.replace("a:1", "b:1"), "s.toml")
    assert text.endswith('-listen = "a:1"\n+listen = "b:1"\n')
    assert "secret" not in text


def test_very_many_changed_lines_are_not_compared_one_by_one(tmp_path: Path) -> None:
    old = "".join(f"# {n}\n" for n in range(MOST_LINES))
    new = "".join(f"# {n + 1}\n" for n in range(MOST_LINES))
    text = patch(f"a = 1\n{old}", f"a = 1\n{new}", "s.toml")
    assert applied(tmp_path, f"a = 1\n{old}", text) == f"a = 1\n{new}"
