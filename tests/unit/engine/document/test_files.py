"""A settings file is written whole: whatever fails or dies, it has its old text or its new one."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.disk import DISK, DiskCalls, write_whole
from amplitude_intercom.engine.document.files import Document, SettingsFile
from amplitude_intercom.engine.document.in_place import UNFINISHED
from amplitude_intercom.engine.document.refusals import (
    CannotRead,
    NotSaved,
    NotWritable,
    TextTooLarge,
    VersionDiffers,
)

OLD = "old = 'ü'\n" * 50
LONGER, SHORTER = OLD + "new = 1", "new = 2\n"
CALLS = ("open", "write", "truncate", "sync", "set_mode", "rename")


class Killed(BaseException):
    """The process dies here."""


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return refuse


def rename_elsewhere(old: Path, new: Path) -> None:
    """The settings file is a mount of its own, as in a container."""
    if new.name == "settings.toml":
        raise OSError(errno.EBUSY, "Device or resource busy")
    os.replace(old, new)


NO_RENAME = DISK._replace(rename=rename_elsewhere)


@contextmanager
def left_alone(folder: Path) -> Iterator[None]:
    """Nothing in a folder changes."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    yield
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


def file_in(folder: Path, disk: DiskCalls = DISK, text: str = OLD) -> SettingsFile:
    path = folder / "settings.toml"
    path.write_bytes(text.encode())
    return SettingsFile(path, folder / "data" / "settings", disk)


def present(file: SettingsFile) -> str:
    return file.path.read_bytes().decode()


# --- reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a = 1", "\ufeffa = 1\r\n", "a = 'ü'\n\n", "not TOML"])
def test_a_text_is_read_and_written_byte_for_byte(tmp_path: Path, text: str) -> None:
    file = file_in(tmp_path, text=text)
    document = file.read()
    assert document == Document(text, hashlib.sha256(text.encode()).hexdigest())
    new = file.write(text + "\r\n# more", document.version)
    assert file.read() == new
    assert present(file) == text + "\r\n# more"


def test_what_is_no_settings_file_cannot_be_edited(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "latin").write_bytes(b"# \xfc")
    for name in ("pipe", "large", "latin", "none", "", "a\0b"):
        with pytest.raises(CannotRead):
            SettingsFile(tmp_path / name, tmp_path).read()
    with pytest.raises(CannotRead):
        SettingsFile(Path("/dev/zero"), tmp_path).read()


# --- writing ------------------------------------------------------------------------------


def test_a_new_file_has_the_mode_of_the_old_one(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    os.chmod(file.path, 0o640)
    before = file.path.stat()
    file.write(LONGER, file.read().version)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    assert file.path.stat().st_ino != before.st_ino
    assert sorted(os.listdir(tmp_path)) == ["settings.toml"]


def test_a_new_file_gets_the_owner_of_the_old_one(tmp_path: Path) -> None:
    owners: list[tuple[int, int]] = []
    path = tmp_path / "file"
    path.write_text("old")
    facts = list(path.stat())
    facts[stat.ST_UID], facts[stat.ST_GID] = 12_345, 54_321
    disk = DISK._replace(own=lambda _, user, group: owners.append((user, group)))
    write_whole(path, b"new", like=os.stat_result(facts), disk=disk)
    assert owners == [(12_345, 54_321)]


def test_a_file_keeps_an_owner_that_no_new_file_can_get(tmp_path: Path) -> None:
    file = file_in(tmp_path, DISK._replace(set_mode=refusing(errno.EPERM)))
    before = file.path.stat()
    file.write(LONGER, file.read().version)
    assert present(file) == LONGER
    assert file.path.stat().st_ino == before.st_ino


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = file_in(tmp_path / "real")
    (tmp_path / "link.toml").symlink_to("real/settings.toml")
    file = SettingsFile(tmp_path / "link.toml", tmp_path / "kept")
    file.write(LONGER, file.read().version)
    assert file.path.is_symlink()
    assert present(target) == LONGER
    assert os.listdir(tmp_path / "real") == ["settings.toml"]


@pytest.mark.parametrize("new", [LONGER, SHORTER, ""])
def test_where_no_rename_is_possible_the_text_is_written_in_place(tmp_path: Path, new: str) -> None:
    file = file_in(tmp_path, NO_RENAME)
    before = file.path.stat()
    assert file.write(new, file.read().version) == file.read()
    assert present(file) == new
    assert file.path.stat().st_ino == before.st_ino
    assert sorted(os.listdir(tmp_path)) == ["data", "settings.toml"]
    assert os.listdir(tmp_path / "data" / "settings") == []


def test_a_file_with_another_name_keeps_it(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    os.link(file.path, tmp_path / "other.toml")
    file.write(LONGER, file.read().version)
    assert (tmp_path / "other.toml").read_text() == LONGER


def test_a_file_that_can_only_be_read_is_said_with_its_path(tmp_path: Path) -> None:
    file = file_in(tmp_path, DISK._replace(open=refusing(errno.EROFS)))
    with left_alone(tmp_path), pytest.raises(NotWritable, match=str(file.path)) as refused:
        file.write(LONGER, file.read().version)
    assert refused.value.path == file.path


def test_a_folder_that_can_only_be_read_is_no_hindrance(tmp_path: Path) -> None:
    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and Path(path).parent == tmp_path:
            raise OSError(errno.EACCES, "Permission denied")
        return os.open(path, flags, mode)

    file = file_in(tmp_path, DISK._replace(open=open_))
    file.write(LONGER, file.read().version)
    assert present(file) == LONGER


def test_a_text_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    refused = {"\ud800": NotSaved, "#" * (MAX_FILE_BYTES + 1): TextTooLarge}
    for text, kind in refused.items():
        with left_alone(tmp_path), pytest.raises(kind):
            file.write(text, file.read().version)


# --- others -------------------------------------------------------------------------------


def test_a_file_that_has_changed_is_not_written_over(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    version = file.read().version
    file.path.write_text("theirs = 1")
    with left_alone(tmp_path), pytest.raises(VersionDiffers) as refused:
        file.write(LONGER, version)
    assert refused.value.version == file.read().version


@pytest.mark.parametrize("disk", [DISK, NO_RENAME])
def test_a_change_during_the_write_is_not_written_over(tmp_path: Path, disk: DiskCalls) -> None:
    def sync(descriptor: int) -> None:
        (tmp_path / "settings.toml").write_text("theirs = 1")

    file = file_in(tmp_path, disk._replace(sync=sync))
    with pytest.raises(VersionDiffers):
        file.write(LONGER, file.read().version)
    assert present(file) == "theirs = 1"
    assert os.listdir(tmp_path) == ["settings.toml"]


def test_a_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    version = file.read().version
    file.path.unlink()
    with pytest.raises(CannotRead):
        file.write(LONGER, version)
    assert os.listdir(tmp_path) == []


# --- faults -------------------------------------------------------------------------------


def failing(call: str, at: int, fault: BaseException, disk: DiskCalls, half: bool) -> DiskCalls:
    """Return calls of which the one at an index fails; a write may have done half its work."""
    real = getattr(disk, call)
    count = iter(range(10_000))

    def failing_call(*arguments: Any) -> Any:
        if next(count) != at:
            return real(*arguments)
        if half and call == "write":
            descriptor, content = arguments
            real(descriptor, content[: len(content) // 2])
        raise fault

    return disk._replace(**{call: failing_call})


FAULTS = pytest.mark.parametrize(
    ("disk", "call", "at"),
    [
        pytest.param(disk, call, at, id=f"{name}-{call}-{at}")
        for name, disk in (("rename", DISK), ("in place", NO_RENAME))
        for call in CALLS
        for at in range(5)
        if not (disk is NO_RENAME and call == "rename")
    ],
)


@FAULTS
@pytest.mark.parametrize("new", [LONGER, SHORTER], ids=["longer", "shorter"])
def test_a_failing_disk_leaves_the_old_text_or_the_new_and_says_which(
    tmp_path: Path, disk: DiskCalls, call: str, at: int, new: str
) -> None:
    fault = OSError(errno.EIO, "Input/output error")
    file = file_in(tmp_path, failing(call, at, fault, disk, half=True))
    said = "the new text is there"
    try:
        file.write(new, file.read().version)
    except NotSaved as error:
        said = str(error)
    assert present(file) == (new if "the new text is there" in said else OLD)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []


@FAULTS
@pytest.mark.parametrize("new", [LONGER, SHORTER], ids=["longer", "shorter"])
def test_a_process_that_dies_anywhere_leaves_the_old_text_or_the_new(
    tmp_path: Path, disk: DiskCalls, call: str, at: int, new: str
) -> None:
    file = file_in(tmp_path, failing(call, at, Killed(), disk, half=True))
    version = file.read().version
    with suppress(Killed):
        file.write(new, version)
    again = SettingsFile(file.path, tmp_path / "data" / "settings")
    again.mend()
    assert present(again) in (OLD, new)
    assert not again.mend()


def test_a_file_that_was_not_shortened_yet_is_whole_all_the_same(tmp_path: Path) -> None:
    file = file_in(tmp_path, NO_RENAME._replace(truncate=failing_truncate))
    with suppress(Killed):
        file.write(SHORTER, file.read().version)
    assert present(file).rstrip("\n") == SHORTER.rstrip("\n")


def failing_truncate(*_: object) -> None:
    raise Killed


def test_a_failing_disk_that_stays_so_keeps_both_texts(tmp_path: Path) -> None:
    def write(descriptor: int, content: bytes) -> int:
        if os.path.samefile(f"/proc/self/fd/{descriptor}", tmp_path / "settings.toml"):
            if content.startswith(b"new"):
                return os.write(descriptor, content[:5])
            raise OSError(errno.EIO, "Input/output error")
        return os.write(descriptor, content)

    disk = NO_RENAME._replace(write=write)
    file = file_in(tmp_path, disk)
    with pytest.raises(NotSaved, match=UNFINISHED):
        file.write(SHORTER, file.read().version)
    kept = tmp_path / "data" / "settings" / UNFINISHED
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert present(file) not in (OLD, SHORTER)
    assert SettingsFile(file.path, kept.parent).mend()
    assert present(file) == OLD


def test_what_somebody_wrote_since_the_crash_stays(tmp_path: Path) -> None:
    file = file_in(tmp_path, failing("write", 1, Killed(), NO_RENAME, half=True))
    with suppress(Killed):
        file.write(LONGER, file.read().version)
    file.path.write_text("theirs = 1")
    again = SettingsFile(file.path, tmp_path / "data" / "settings")
    assert not again.mend()
    assert present(again) == "theirs = 1"


def test_a_damaged_remainder_is_said(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    (tmp_path / "data" / "settings").mkdir(parents=True)
    for content in (b"", b"[]", b"{}", b'{"path": 1, "old": 2, "new": 3}', b"\xff"):
        (tmp_path / "data" / "settings" / UNFINISHED).write_bytes(content)
        with pytest.raises(NotSaved, match=UNFINISHED):
            file.mend()
    assert present(file) == OLD


WRITER = """
import sys
from pathlib import Path
from amplitude_intercom.engine.document.files import SettingsFile
file = SettingsFile(Path(sys.argv[1]), Path(sys.argv[2]))
texts = ["a = 1\\n" * 20_000, "b = 2\\n" * 30_000]
document = file.read()
while True:
    document = file.write(texts[0] if document.text == texts[1] else texts[1], document.version)
    print(flush=True)
"""


@pytest.mark.parametrize("names", [1, 2])
def test_sigkill_leaves_one_of_the_texts(tmp_path: Path, names: int) -> None:
    path, kept = tmp_path / "settings.toml", tmp_path / "kept"
    texts = ("a = 1\n" * 20_000, "b = 2\n" * 30_000)
    path.write_text(texts[0])
    if names == 2:  # written in place
        os.link(path, tmp_path / "other")
    for lines in range(1, 8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(kept)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        with writer, writer.stdout:
            for _ in range(lines):
                assert writer.stdout.readline() == b"\n"
            writer.send_signal(signal.SIGKILL)
        SettingsFile(path, kept).mend()
        assert path.read_text() in texts
