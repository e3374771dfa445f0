"""Files: found, opened whatever they are packed in, cut into lines."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import os
import socket
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.transports import file_events, files, finding, kinds
from amplitude_intercom.transports.errors import BadFile
from amplitude_intercom.transports.kinds import NotEvents
from amplitude_intercom.transports.lines import FilePosition
from amplitude_intercom.transports.packing import STEP_BYTES, PackedText

# --- packing ----------------------------------------------------------------------------


def read(path: Path, start: FilePosition | None = None) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for member, text, _, problem in files.read(str(path), start):
        assert not problem
        found[member] = found.get(member, b"") + text
    return found


def problems(path: Path) -> list[tuple[str, str]]:
    return [(c.member, c.problem) for c in files.read(str(path)) if c.problem]


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["events.json", "events.json.gz", "events.zip", "events"])
def test_the_packing_of_a_file_is_told_by_its_first_bytes_not_by_its_name(
    tmp_path: Path, name: str
) -> None:
    text = b"one\ntwo\n" * 100_000
    path = tmp_path / name
    for content, expected in (
        (text, {"": text}),
        (gzip.compress(text), {"": text}),
        (gzip.compress(text[:9]) + gzip.compress(text[9:]), {"": text}),
        (zipped(a=gzip.compress(text), b=text), {"a": text, "b": text}),
        (b"", {"": b""}),
    ):
        path.write_bytes(content)
        assert read(path) == expected


def test_only_files_of_an_export_are_read_hour_by_hour(
    tmp_path: Path,
) -> None:
    names = ["412345/412345_2024-05-14_9#0.json.gz", "412345/412345_2024-05-14_10#0.json.gz"]
    aside = ["412345/-OrgID_2024-05-14_9.json.gz", "__MACOSX/412345/x.json.gz", "412345/.hidden"]
    path = tmp_path / "export.zip"
    path.write_bytes(
        zipped(**{name: gzip.compress(name.encode()) for name in [*aside, *names[::-1]]})
    )
    assert list(read(path)) == names
    for name in [*aside, *names]:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(gzip.compress(b"x"))
    (tmp_path / "folder" / "notes.txt").touch()
    wanted = [str(tmp_path / "folder" / name) for name in [*names, "__MACOSX/412345/x.json.gz"]]
    assert finding.find([str(tmp_path / "folder")]) == wanted
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "back").symlink_to(tmp_path / "links")
    assert len(finding.find([str(tmp_path / "links")])) == 3
    assert finding.find(["-", str(path)]) == ["-", str(path)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_file_gives_its_lines_before_the_damage_is_named(
    tmp_path: Path, packed: bool
) -> None:
    text = b"".join(b"%d\n" % (n * n) for n in range(200_000))
    whole = gzip.compress(text)
    path = tmp_path / "events.json.gz"
    cut_off = whole[: len(whole) // 2]
    path.write_bytes(zipped(**{"a.json.gz": cut_off}) if packed else cut_off)
    chunks = list(files.read(str(path)))
    found = b"".join(chunk.text for chunk in chunks)
    assert found
    assert text.startswith(found)
    assert chunks[-1].problem == "damaged: it ends too early"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"x" * 99, mtime=0)[:-4] + b"\0\0\0\0", "incorrect length check"),
        (b"PK\x05\x06" + bytes(9), "not a zip file"),
        (b"PK\x03\x04junk", "not a zip file"),
    ],
)
def test_the_fault_of_a_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "events"
    path.write_bytes(content)
    [(member, text)] = problems(path)
    assert member == ""
    assert said in text


def test_one_damaged_member_does_not_cost_the_others(tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    cut_off = gzip.compress(b"1\n" * 9)[:-9]
    path.write_bytes(zipped(**{"a.gz": cut_off, "b.json": b"2\n", "c.zip": zipped(x=b"")[:-9]}))
    assert [m for m, _ in problems(path)] == ["a.gz", "c.zip"]
    assert b"2\n" in [chunk.text for chunk in files.read(str(path))]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_archive_with_a_flipped_byte_is_read_or_called_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:  # the same bytes at any time of day
        archive.writestr(zipfile.ZipInfo("a.json"), b"1\n" * 50, method)
        archive.writestr(zipfile.ZipInfo("b.json.gz"), gzip.compress(b"2\n" * 50, mtime=0), method)
    content = bytearray(buffer.getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "x"
    path.write_bytes(content)
    for chunk in files.read(str(path)):
        assert len(chunk.text) <= files.CHUNK_BYTES


def test_zeros_behind_a_gzip_stream_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "events.gz"
    for first, second in ((b"1\n", b"2\n"), (b"1\n" * 400_000, b"2\n" * 400_000)):
        padded = gzip.compress(first) + bytes(512) + gzip.compress(second) + bytes(512)
        path.write_bytes(padded)
        assert read(path) == {"": first + second}


def test_members_of_one_name_are_all_read_on(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a.json", b"1\n2\n3\n")
    assert read(path, FilePosition("a.json", 1, 2)) == {"a.json": b"2\n3\n1\n2\n3\n"}


def test_a_name_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.json")
    Path(path).write_bytes(b"1\n")
    assert finding.shown(path).endswith("/\\xff\\xfe.json")
    finding.identity(path).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_packed_pipe_is_unpacked_at_any_split(size: int) -> None:
    for packed, text in (
        (gzip.compress(b"one\ntwo\n"), b"one\ntwo\n"),
        (b"one", b"one"),
        (b"1", b"1"),
        (b"", b""),
    ):
        stream = PackedText()
        found = b""
        for at in range(0, len(packed), size):
            found += b"".join(stream.feed(packed[at : at + size]))
        assert found + b"".join(stream.finish()) == text


LINES = b"".join(b'{"event_type": "a", "n": %d}\n' % n for n in range(20_000))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_read_by_their_first_bytes_inside_zips_and_in_each_other(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    path = tmp_path / "events.json"
    for content, expected in (
        (pack(LINES), {"": LINES}),
        (pack(LINES[:half]) + pack(LINES[half:]), {"": LINES}),
        (gzip.compress(pack(LINES)), {"": LINES}),
        (zipped(a=pack(LINES), b=LINES), {"a": LINES, "b": LINES}),
        (pack(zipped(a=LINES)), {"a": LINES, "": b""}),
    ):
        path.write_bytes(content)
        assert read(path) == expected
    path.write_bytes(pack(LINES)[:-20])
    assert problems(path) == [("", "damaged: it ends too early")]


def test_a_zip_in_a_zip_is_read_like_the_same_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    inner = zipped(**{"x/2.json.gz": gzip.compress(b"2\n"), "x/1.json": b"1\n", "__MACOSX/1": b"-"})
    path.write_bytes(zipped(**{"1.json.gz": inner, "2.json": b"3\n", "3.zip": zipped(a=inner)}))
    found = {member: text for member, text in read(path).items() if text}
    inside = {"x/1.json": b"1\n", "x/2.json.gz": b"2\n"}
    assert found == {
        **{f"1.json.gz:{name}": text for name, text in inside.items()},
        "2.json": b"3\n",
        **{f"3.zip:a:{name}": text for name, text in inside.items()},
    }
    start = FilePosition("3.zip:a:x/2.json.gz", 1, 1)
    assert {m: t for m, t in read(path, start).items() if t} == {start.member: b"\n"}


def test_packing_ends_somewhere(tmp_path: Path) -> None:
    content = b"{}"
    for _ in range(20):
        content = gzip.compress(content)
    path = tmp_path / "events.gz"
    path.write_bytes(content)
    assert problems(path) == [("", "packed more than 4 times")]
    path.write_bytes(zipped(a=zipped(a=zipped(a=zipped(a=zipped(a=b"{}"))))))
    assert problems(path) == [("a:a:a:a", "packed more than 4 times")]


def test_a_zip_that_lists_members_without_end_is_refused_before_they_are_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.zip"
    content = bytearray(zipped(a=b"{}"))
    at = content.rindex(b"PK\x05\x06") + 12
    content[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    [(_, problem)] = problems(path)
    assert "list of members" in problem
    path.write_bytes(zipped(b=b"{}", a=bytes(content)))
    assert [member for member, _ in problems(path)] == ["a"]


def test_an_archive_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.xz"
    packed = bytearray(lzma.compress(b"{}\n", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    header = slice(12, 12 + 4 * (packed[12] + 1) - 4)
    packed[packed.index(b"\x21\x01", 12) + 2] = 36  # a dictionary of 1 GiB (xz format, 5.3.1)
    packed[header.stop : header.stop + 4] = zlib.crc32(packed[header]).to_bytes(4, "little")
    path.write_bytes(packed)
    assert problems(path) == [("", "damaged: Memory usage limit exceeded")]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"Obj\x01\x04\x14avro", "an Avro file"),
        (b"ORC\x08\x03", "an ORC file"),
        (b"SQLite format 3\x00\x10", "an SQLite database"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7-Zip archive, unpack it first"),
        (b"%PDF-1.7\n%\xe2", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "an image (PNG)"),
        (b"\xff\xd8\xff\xe0", "an image (JPEG)"),
        (b"a\x00b\x01" * 9, "binary"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<HTML><head>", "an HTML page"),
        (b'<?xml version="1.0"?><Error>', "XML"),
        ('{"event_type": "a"}'.encode("utf-16-le"), "UTF-16, save it as UTF-8"),
        ('{"event_type": "a"}'.encode("utf-16-be"), "UTF-16, save it as UTF-8"),
        ('{"event_type": "a"}'.encode("utf-16"), "UTF-16, save it as UTF-8"),
    ],
)
def test_a_file_without_json_is_called_by_its_kind(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    path = tmp_path / "events.json"
    for packed in (content, content + b"\n" * 600, gzip.compress(content)):
        path.write_bytes(packed)
        assert problems(path) == [("", f"not JSON: {kind}")]
    path.write_bytes(zipped(a=b"{}", b=content))
    assert problems(path) == [("b", f"not JSON: {kind}")]


def test_a_tar_archive_is_called_one_packed_or_not(tmp_path: Path) -> None:
    path = tmp_path / "events.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "events.json")
    assert problems(path) == [("", "not JSON: a tar archive, unpack it first")]
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert problems(path) == [("", "not JSON: a tar archive, unpack it first")]


def test_zstandard_is_read_where_a_library_is_there_and_else_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "events.json.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x20\x03\x19\x00\x00{}\n")
    if any(map(_is_there, ("compression", "backports", "zstandard"))):
        assert read(path) == {"": b"{}\n"}
    else:
        [(_, problem)] = problems(path)
        assert problem.startswith("packed with Zstandard: install `zstandard`")


def _is_there(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def test_a_log_that_begins_with_zeros_is_still_text(tmp_path: Path) -> None:
    path = tmp_path / "copied-and-truncated.log"
    path.write_bytes(bytes(100) + b'{"event_type": "a"}\n')
    assert problems(path) == []


def test_unreadable_entries_of_a_folder_are_named_and_the_rest_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "b.json").symlink_to(tmp_path / "b.json")
    (tmp_path / "c.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.json")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "e.json"))
        told: list[OSError] = []
        assert finding.find([str(tmp_path), "-", "-"], told.append) == [
            str(tmp_path / "a.json"),
            "-",
        ]
    assert sorted(Path(error.filename).name for error in told) == [f"{c}.json" for c in "bcde"]
    with pytest.raises(OSError, match=r"[bcde]\.json"):
        finding.find([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a,b\n1,2\n", "not JSON: CSV"), (b'[{"a":1},', "ends too early"), (b"PAR1", "Parquet")],
)
def test_events_of_one_file_are_read_until_it_is_known_to_be_bad(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "x.zip"
    for packed, name in ((content, "x.zip"), (zipped(a=content, b=b'{"b":1}'), "x.zip:a")):
        path.write_bytes(packed)
        found: list[bytes] = []
        with pytest.raises(BadFile, match=said) as caught:
            found.extend(line.text for line in file_events.read_lines(str(path), 1_000))
        assert caught.value.path == str(tmp_path / name)


def test_a_zip_that_has_to_be_collected_is_bounded() -> None:
    stream = PackedText(max_zip_bytes=100)
    assert list(stream.feed(b"PK\x03\x04" + bytes(90))) == []
    with pytest.raises(NotEvents, match="a ZIP of over 100 bytes that is no file of its own"):
        list(stream.feed(bytes(9)))
    assert stream.archive is not None
    stream.archive.close()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_inflated_bit_by_bit(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(pack(b"\0" * 50_000_000))
    assert max(len(chunk.text) for chunk in files.read(str(path))) <= files.CHUNK_BYTES


def test_reading_goes_on_in_the_member_and_at_the_place_where_it_stopped(tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % n for n in range(100_000))
    path = tmp_path / "events"
    place = FilePosition("", 5, 10)
    for content, start, expected in (
        (text, place, {"": text[10:]}),
        (gzip.compress(text), place, {"": text[10:]}),
        (
            zipped(a=b"1", b=gzip.compress(text), c=b"3"),
            FilePosition("b", 5, 10),
            {"b": text[10:], "c": b"3"},
        ),
    ):
        path.write_bytes(content)
        assert read(path, start) == expected
        assert sum(chunk.read_bytes for chunk in files.read(str(path), start)) <= len(content) + 9


def test_a_file_that_has_changed_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"1\n")
    before = finding.identity(str(path))
    assert finding.identity(str(path)) == before
    path.write_bytes(b"1\n2\n")
    assert finding.identity(str(path)) != before


# --- damage -----------------------------------------------------------------------------


def _deflated(text: bytes) -> bytes:
    return zipped(a=text)


def _wrong_crc(packed: bytes, text: bytes) -> bytes:
    """Flip the checksum of a text wherever it stands."""
    crc = zlib.crc32(text).to_bytes(4, "little")
    assert crc in packed
    return packed.replace(crc, bytes(byte ^ 1 for byte in crc))


@pytest.mark.parametrize("pack", [gzip.compress, _deflated], ids=["gzip", "zip"])
@pytest.mark.parametrize("count", [20, 5_000, 20_000])
def test_a_wrong_checksum_at_the_end_costs_nothing_before_it(
    tmp_path: Path, pack: Callable[[bytes], bytes], count: int
) -> None:
    text = b"".join(LINES.splitlines(keepends=True)[:count])
    path = tmp_path / "events"
    path.write_bytes(_wrong_crc(pack(text), text))
    chunks = list(files.read(str(path)))
    assert b"".join(chunk.text for chunk in chunks) == text
    assert [chunk.problem for chunk in chunks if chunk.problem]


@pytest.mark.parametrize("pack", [bz2.compress, lambda text: lzma.compress(text, check=1)])
def test_without_a_copy_a_wrong_checksum_costs_the_last_bytes_alone(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    packed = bytearray(pack(LINES))
    if packed.startswith(b"BZh"):
        packed[10] ^= 1  # of its first block
    else:
        at = packed.index(zlib.crc32(LINES).to_bytes(4, "little"))
        packed[at] ^= 1
    path = tmp_path / "events"
    path.write_bytes(packed)
    chunks = list(files.read(str(path)))
    found = b"".join(chunk.text for chunk in chunks)
    assert LINES.startswith(found)
    assert len(found) > len(LINES) - STEP_BYTES
    assert chunks[-1].problem


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_lines_inflated_before_the_damage_are_delivered(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = bytearray(gzip.compress(LINES[:30_000], mtime=0))
    at = data.draw(st.integers(10, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "x"
    path.write_bytes(packed)
    found = b"".join(chunk.text for chunk in files.read(str(path)))
    expected = _byte_by_byte(bytes(packed))
    assert found.startswith(expected) or not kinds.tells(expected)


def _byte_by_byte(packed: bytes) -> bytes:
    member, found = zlib.decompressobj(31), b""
    with suppress(zlib.error):
        for at in range(len(packed)):
            found += member.decompress(packed[at : at + 1])
    return found


class _Unseekable(io.BytesIO):
    """What a ZIP is written to whose members' sizes stand behind them."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError

    def tell(self) -> int:
        raise OSError


@pytest.mark.parametrize(
    ("buffer", "method"),  # without sizes in front, nothing tells where a stored member ends
    [
        (io.BytesIO, zipfile.ZIP_DEFLATED),
        (io.BytesIO, zipfile.ZIP_STORED),
        (_Unseekable, zipfile.ZIP_DEFLATED),
    ],
)
def test_a_zip_that_is_cut_off_gives_the_members_that_are_whole(
    tmp_path: Path, buffer: type[io.BytesIO], method: int
) -> None:
    target = buffer()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("a.json", LINES)
        archive.writestr("__MACOSX/b.json", b"none")
        archive.writestr("b.json.gz", gzip.compress(LINES))
        archive.writestr("c.json", LINES)
    whole = target.getvalue()
    path = tmp_path / "export.zip"
    for cut_at, names in (
        (whole.index(b"PK\x01\x02"), "abc"),
        (whole.index(b"PK\x01\x02") + 99, "abc"),
        (whole.rindex(b"PK\x03\x04") + 9, "ab"),
        (whole.rindex(b"PK\x03\x04") + 9_000, "abc"),
    ):
        path.write_bytes(whole[:cut_at])
        found: dict[str, bytes] = {}
        for chunk in files.read(str(path)):
            found[chunk.member] = found.get(chunk.member, b"") + chunk.text
        assert [name[0] for name in found if name] == list(names)
        assert found["a.json"] == found["b.json.gz"] == LINES
        assert LINES.startswith(found.get("c.json", b""))
        assert ("", "damaged: a ZIP that ends too early") in problems(path)


def test_a_member_that_is_damaged_costs_no_other_in_a_zip_that_is_cut_off(tmp_path: Path) -> None:
    whole = zipped(a=LINES, b=b"PAR1" + LINES, c=LINES)
    path = tmp_path / "export.zip"
    path.write_bytes(_wrong_crc(whole[: whole.index(b"PK\x01\x02")], LINES))
    found: dict[str, bytes] = {}
    for chunk in files.read(str(path)):
        found[chunk.member] = found.get(chunk.member, b"") + chunk.text
    assert (found["a"], found["c"]) == (LINES, LINES)
    assert [member for member, _ in problems(path)] == ["a", "b", "c", ""]


def test_standard_input_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with ThreadPoolExecutor() as threads, io.BufferedReader(files.BlockingFile(reading)) as file:
        found = threads.submit(file.read, files.CHUNK_BYTES)
        for byte in LINES[:100]:
            os.write(writing, bytes([byte]))
        os.close(writing)
        assert found.result() == LINES[:100]
