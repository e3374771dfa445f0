"""A settings file that a crash has left half written, before it is read at a start.

A console that cannot rename writes the file in place, with both texts in the data directory
meanwhile (``document.in_place``). Half a text may not be TOML, so where the data directory is, is
looked for in its lines.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.disk import read_regular
from amplitude_intercom.engine.document.files import SettingsFile
from amplitude_intercom.engine.document.in_place import UNFINISHED
from amplitude_intercom.engine.document.refusals import NotSaved
from amplitude_intercom.engine.document.settings_document import VERSIONS_FOLDER
from amplitude_intercom.engine.errors import DataDirInUse, SettingsError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.settings_problems import home_expanded
from amplitude_intercom.engine.spool.sqlite.lock import DataDir

MENDED: Final = "the settings file was half written: it has its old text again"

_DATA_DIR: Final = re.compile(
    rb"""^[ \t]*["']?data_dir["']?[ \t]*=[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*')""", re.MULTILINE
)
_MOST_FOLDERS: Final = 10


def mend(path: Path) -> str:
    """Give a half written settings file its old text; return in words whether that was done, or
    failed; empty: there was nothing to do.

    A running daemon may just be writing, so it is left to that.
    """
    for folder in _data_dirs(path):
        try:
            with DataDir(folder):
                if SettingsFile(path, folder / VERSIONS_FOLDER).mend():
                    return MENDED
        except (DataDirInUse, SettingsError):
            continue  # the start says so, if it is its data directory
        except NotSaved as error:
            return f"the settings file may be half written: {error}"
    return ""


def _data_dirs(path: Path) -> Iterator[Path]:
    """Yield the folders that may be the data directory, and have texts of an unfinished write."""
    try:
        content, _ = read_regular(path, 2 * MAX_FILE_BYTES)
    except (OSError, ValueError):  # a pipe, or nothing: it is not mended
        return
    said = dict.fromkeys([*_named(content), Settings(sync=[]).data_dir])
    for name in list(said)[:_MOST_FOLDERS]:
        folder = path.parent / home_expanded(name)
        if (folder / VERSIONS_FOLDER / UNFINISHED).is_file():
            yield folder


def _named(content: bytes) -> Iterator[str]:
    for found in _DATA_DIR.finditer(content):
        try:
            value = tomllib.loads(f"it = {found[1].decode()}")["it"]
        except (ValueError, RecursionError):
            continue
        if isinstance(value, str) and "\0" not in value:
            yield value
