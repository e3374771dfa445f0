"""Files: found, opened whatever they are packed in, cut into lines."""

from __future__ import annotations

import gzip
import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports import files
from transports.files import KEPT_BYTES, Elements, Lines, Position


def cut(cutter: Lines | Elements, *chunks: bytes) -> list[tuple[int, bytes, bool]]:
    found = [line for chunk in chunks for line in cutter.cut(chunk)]
    return [line[:3] for line in [*found, *cutter.finish()]]


# --- lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_where_chunks_end_does_not_matter(size: int) -> None:
    text = b"\xef\xbb\xbfone\r\n\n  \ntwo\nthree"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert cut(Lines(100), *chunks) == [(1, b"one", True), (4, b"two", True), (5, b"three", True)]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert cut(Lines(3), b"abc\nabcd\nabc") == [
        (1, b"abc", True),
        (2, b"abcd", False),
        (3, b"abc", True),
    ]


def test_only_the_beginning_of_a_gigantic_line_is_kept_and_the_next_is_whole() -> None:
    lines = Lines(10_000)
    found = cut(lines, *[b"x" * 1_000_000] * 20, b"\nnext\n")
    assert found == [(1, b"x" * KEPT_BYTES, False), (2, b"next", True)]


def test_a_gigantic_line_without_an_end_is_reported() -> None:
    assert cut(Lines(10_000), b"x" * 20_000) == [(1, b"x" * KEPT_BYTES, False)]


@pytest.mark.parametrize(("before", "cutter"), [(b"", Lines), (b"[", Elements)])
def test_texts_that_are_too_long_differ_wherever_they_differ(before: bytes, cutter: Any) -> None:
    def digest(text: bytes, size: int) -> bytes:
        one, whole = cutter(10_000), before + text
        found = [
            line for at in range(0, len(whole), size) for line in one.cut(whole[at : at + size])
        ]
        [line] = found + one.finish()
        assert not line.whole
        return bytes(line.digest)

    texts = [b"1" * at + b"2" + b"1" * (50_000 - at) for at in (0, 100, 5_000, 15_000, 49_999)]
    for text in texts:
        assert len({digest(text, size) for size in (999, 7_001, 60_000)}) == 1
    assert len({digest(text, 7_001) for text in texts}) == len(texts)


TEXTS = st.lists(st.sampled_from([b"", b"a", b"bc", b"\r", b"x" * 9]), max_size=8).map(b"\n".join)


@given(TEXTS, st.integers(1, 5), st.integers(1, 10))
def test_reading_on_from_behind_any_line_gives_the_rest(text: bytes, size: int, limit: int) -> None:
    def lines_from(start: Position) -> list[files.Line]:
        cutter, rest = Lines(limit, start), text[start.offset :]
        found = [line for i in range(0, len(rest), size) for line in cutter.cut(rest[i : i + size])]
        return found + cutter.finish()

    everything = lines_from(Position())
    for at, line in enumerate(everything):
        start = Position("", line.number, line.end)
        assert lines_from(start) == everything[at + 1 :]


# --- arrays -----------------------------------------------------------------------------

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.sampled_from('a"\\,[]{}:é\n'), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=5), st.sampled_from([None, 2]), st.integers(1, 7))
def test_an_array_is_cut_into_its_elements_wherever_the_chunks_end(
    elements: list[Any], indent: int | None, size: int
) -> None:
    text = json.dumps(elements, indent=indent).encode()
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    found = cut(Elements(1_000), *chunks)
    assert [json.loads(element) for _, element, _ in found] == elements
    assert [(number, whole) for number, _, whole in found] == [
        (n, True) for n in range(1, len(elements) + 1)
    ]


def test_an_element_that_is_too_long_costs_neither_memory_nor_the_next_one() -> None:
    cutter = Elements(10_000)
    pieces = [b'[{"a": "', *[b'\\"x,]' * 50_000] * 20, b'"}, {"b": [', *[b"1, " * 50_000] * 20]
    found = [line for piece in pieces for line in cutter.cut(piece)]
    assert len(cutter._buffer) < 300_000
    found += cutter.cut(b'2]}, {"c": 3}]')
    assert [(line.number, line.whole) for line in found] == [(1, False), (2, False), (3, True)]
    assert found[2].text == b'{"c": 3}'
    assert cutter.finish() == []


def test_an_array_that_is_cut_off_says_so_by_its_last_element() -> None:
    assert cut(Elements(100), b'[{"a": 1}, {"b": ') == [(1, b'{"a": 1}', True), (2, b'{"b":', True)]


# --- packing ----------------------------------------------------------------------------


def read(path: Path, start: Position | None = None) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for member, text, _, damage in files.read(str(path), start):
        assert not damage
        found[member] = found.get(member, b"") + text
    return found


def damage(path: Path) -> list[tuple[str, str]]:
    return [(c.member, c.damage) for c in files.read(str(path)) if c.damage]


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["events.json", "events.json.gz", "events.zip", "events"])
def test_what_a_file_is_packed_in_is_told_by_its_first_bytes_not_by_its_name(
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


def test_the_files_of_an_export_are_read_hour_by_hour_and_what_is_none_of_them_is_not(
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
    assert files.find([str(tmp_path / "folder")]) == wanted
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "back").symlink_to(tmp_path / "links")
    assert len(files.find([str(tmp_path / "links")])) == 3
    assert files.find(["-", str(path)]) == ["-", str(path)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_gives_what_is_there_before_it_says_so(
    tmp_path: Path, packed: bool
) -> None:
    text = bytes(range(256)) * 5_000
    whole = gzip.compress(text)
    path = tmp_path / "events.json.gz"
    cut_off = whole[: len(whole) // 2]
    path.write_bytes(zipped(**{"a.json.gz": cut_off}) if packed else cut_off)
    chunks = list(files.read(str(path)))
    found = b"".join(chunk.text for chunk in chunks)
    assert found
    assert text.startswith(found)
    assert chunks[-1].damage == "it ends too early"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"x" * 99)[:-4] + b"\0\0\0\0", "incorrect length check"),
        (zipped(a=b"x")[:-30], "not a zip file"),
        (b"PK\x03\x04junk", "not a zip file"),
        ("one\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "events"
    path.write_bytes(content)
    [(member, text)] = damage(path)
    assert member == ""
    assert said in text


def test_one_damaged_member_does_not_cost_the_others(tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    cut_off = gzip.compress(b"1\n" * 9)[:-9]
    path.write_bytes(zipped(**{"a.gz": cut_off, "b.json": b"2\n", "c.zip": zipped(x=b"")}))
    assert [m for m, _ in damage(path)] == ["a.gz", "c.zip"]
    assert b"2\n" in [chunk.text for chunk in files.read(str(path))]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_byte_of_an_archive_is_flipped_it_is_read_or_called_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.json", b"1\n" * 50)
        archive.writestr("b.json.gz", gzip.compress(b"2\n" * 50))
    content = bytearray(buffer.getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "x"
    path.write_bytes(content)
    for chunk in files.read(str(path)):
        assert len(chunk.text) <= files.CHUNK_BYTES


def test_zeros_behind_a_gzip_stream_are_padding(tmp_path: Path) -> None:
    path = tmp_path / "events.gz"
    padded = gzip.compress(b"1\n") + bytes(512) + gzip.compress(b"2\n") + bytes(512)
    path.write_bytes(padded)
    assert read(path) == {"": b"1\n2\n"}


def test_members_of_one_name_are_all_read_on(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a.json", b"1\n2\n3\n")
    assert read(path, Position("a.json", 1, 2)) == {"a.json": b"2\n3\n1\n2\n3\n"}


def test_a_name_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.json")
    Path(path).write_bytes(b"1\n")
    assert files.shown(path).endswith("/\\xff\\xfe.json")
    files.identity(path).encode()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"[INFO] start\n{}\n", [b"[INFO] start", b"{}"]),
        (b"\n\n [\n{}\n]", [b"{}"]),
        (b"[", [b"["]),
        (b"[\n", [b"["]),
        (b"[{}]\n{}\n[1]\n", [b"{}", b"{}", b"[1]"]),
        (b"[{}},{}]\n{}\n", [b"{}", b",{}]", b"{}"]),
        (b"[]]]]\n{}", [b"]]]", b"{}"]),
        (b"  \n", []),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_text_is_an_array_only_where_it_begins_like_one_of_events(
    text: bytes, lines: list[bytes], size: int
) -> None:
    cutter = files.Cutter(1_000)
    found = [line for i in range(0, len(text), size) for line in cutter.cut(text[i : i + size])]
    assert [line.text for line in [*found, *cutter.finish()]] == lines


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_what_comes_through_a_pipe_is_unpacked_wherever_its_pieces_end(size: int) -> None:
    for packed, text in (
        (gzip.compress(b"one\ntwo\n"), b"one\ntwo\n"),
        (b"one", b"one"),
        (b"1", b"1"),
        (b"", b""),
    ):
        stream = files.Stream()
        found = b""
        for at in range(0, len(packed), size):
            found += b"".join(stream.feed(packed[at : at + size]))
        assert found + b"".join(stream.finish()) == text


def test_a_bomb_is_inflated_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0" * 50_000_000))
    assert max(len(chunk.text) for chunk in files.read(str(path))) <= files.CHUNK_BYTES


def test_reading_goes_on_in_the_member_and_at_the_place_where_it_stopped(tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % n for n in range(100_000))
    path = tmp_path / "events"
    place = Position("", 5, 10)
    for content, start, expected in (
        (text, place, {"": text[10:]}),
        (gzip.compress(text), place, {"": text[10:]}),
        (
            zipped(a=b"1", b=gzip.compress(text), c=b"3"),
            Position("b", 5, 10),
            {"b": text[10:], "c": b"3"},
        ),
    ):
        path.write_bytes(content)
        assert read(path, start) == expected
        assert sum(chunk.read_bytes for chunk in files.read(str(path), start)) <= len(content) + 9


def test_a_file_that_has_changed_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"1\n")
    before = files.identity(str(path))
    assert files.identity(str(path)) == before
    path.write_bytes(b"1\n2\n")
    assert files.identity(str(path)) != before


@given(
    st.lists(st.sampled_from([b"a", b"bc", b" d\r", b"", b"x" * 9]), max_size=30).map(b"\n".join),
    st.integers(1, 12),
)
def test_lines_that_are_cut_all_at_once_are_the_same(text: bytes, size: int) -> None:
    slow, fast = Lines(8), Lines(8)
    for at in range(0, len(text), size):
        piece = text[at : at + size]
        expected = slow.cut(piece)
        plain = fast.cut_plain(piece)
        if plain is None:
            assert fast.cut(piece) == expected
        else:
            assert [(line.number, line.text) for line in expected] == [
                *enumerate(plain.texts, plain.first)
            ]
            assert all(line.whole for line in expected)
            ends = [plain.begin + plain.length(slice(0, n + 1)) for n in range(len(expected))]
            assert [line.end for line in expected] == ends
    assert fast.finish() == slow.finish()
