"""The kind of a file by its first bytes: text, packed text, or another format. Pure.

Names cannot be trusted: pieces of an Export are saved as a ZIP called ``.json.gz``, an error page
as ``.json``.
"""

from __future__ import annotations

import re
from typing import Final

SNIFF_BYTES: Final = 512
"""Enough for every format: the mark of a tar archive is at byte 257."""

GZIP, BZIP2, XZ, ZSTD, ZIP = "gzip", "bzip2", "xz", "zstd", "zip"

PACKINGS: Final = {
    b"\x1f\x8b": GZIP,
    b"BZh": BZIP2,
    b"\xfd7zXZ\x00": XZ,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,
}
"""Formats that can be unpacked, by their first bytes (documents of the formats)."""

_UNPACK = "unpack it first"
_FOREIGN: Final = {
    b"PAR1": "a Parquet file",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n": "an HDF5 file",
    b"7z\xbc\xaf\x27\x1c": f"a 7-Zip archive, {_UNPACK}",
    b"Rar!\x1a\x07": f"a RAR archive, {_UNPACK}",
    b"\x04\x22\x4d\x18": f"packed with LZ4, {_UNPACK}",
    b"\x1f\x9d": f"packed with compress, {_UNPACK}",
    b"%PDF": "a PDF document",
    b"\x89PNG": "an image (PNG)",
    b"GIF8": "an image (GIF)",
    b"\xff\xd8\xff": "an image (JPEG)",
    b"\x7fELF": "a program",
}
"""Formats without JSON, by their first bytes."""

_MARKUP: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:(!doctype html|html)|(\?xml))", re.I)
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_SEPARATED: Final = re.compile(r'[\w .$"\'-]+(?:[,;\t|][\w .$"\'-]*)+')
_SHOWN: Final = 40


class NotEvents(ValueError):
    """No JSON can be read from a text; the message names its format."""


def tells(first: bytes) -> bool:
    """Whether these first bytes decide the kind; a pipe may bring no more for long."""
    if len(first) >= SNIFF_BYTES or packing_of(first) in (GZIP, XZ, ZSTD, ZIP):
        return True
    if first[:1] in (b"{", b"["):
        return len(first) >= 4
    return b"\n" in first


def packing_of(first: bytes) -> str | None:
    """Return the packing of a file, or None."""
    found = next((name for magic, name in PACKINGS.items() if first.startswith(magic)), None)
    return None if found == BZIP2 and not first[3:4].isdigit() else found


def foreign(first: bytes) -> str | None:
    """Return the name of a format without JSON, or None: it may be text."""
    for magic, name in _FOREIGN.items():
        if first.startswith(magic):
            return name
    if first[257:262] == b"ustar":
        return f"a tar archive, {_UNPACK}"
    markup = _MARKUP.match(first)
    if markup:
        return "an HTML page" if markup[1] else "XML"
    if _is_utf_16(first):
        return "UTF-16, save it as UTF-8"
    begins = first.lstrip(b"\0 \t\r\n")  # a log may have zeros where a crash cut it
    return "binary" if b"\0" in begins and begins[:1] not in (b"{", b"[") else None


def _is_utf_16(first: bytes) -> bool:
    """Whether it has the mark of UTF-16, or every other byte is zero, as in ASCII text."""
    if first.startswith(_UTF_16):
        return True
    even, odd = first[0:16:2], first[1:16:2]
    return len(first) >= 4 and any(even) is not any(odd)


def not_json(line: bytes) -> str:
    """Return the message for a text without any JSON object; ``line`` is its first."""
    text = line.decode("utf-8", "replace").strip()
    if _SEPARATED.fullmatch(text):
        return f"not JSON: CSV, its first line is {text[:_SHOWN]!r}"
    return f"not JSON objects: it begins with {text[:_SHOWN]!r}"
