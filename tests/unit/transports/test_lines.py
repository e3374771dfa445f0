"""Text, cut into events, in whatever shape they are set in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.transports.lines import KEPT_BYTES, FilePosition, Line, LineCutter
from amplitude_intercom.transports.shapes import FIRST_PIECES, Cutter
from amplitude_intercom.transports.values import ValueCutter


def cut(cutter: LineCutter | ValueCutter, *chunks: bytes) -> list[tuple[int, bytes, bool]]:
    found = [line for chunk in chunks for line in cutter.cut(chunk)]
    return [line[:3] for line in [*found, *cutter.finish()]]


# --- lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_where_chunks_end_does_not_matter(size: int) -> None:
    text = b"\xef\xbb\xbfone\r\n\n  \ntwo\nthree"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert cut(LineCutter(100), *chunks) == [
        (1, b"one", True),
        (4, b"two", True),
        (5, b"three", True),
    ]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert cut(LineCutter(3), b"abc\nabcd\nabc") == [
        (1, b"abc", True),
        (2, b"abcd", False),
        (3, b"abc", True),
    ]


def test_only_the_beginning_of_a_gigantic_line_is_kept_and_the_next_is_whole() -> None:
    lines = LineCutter(10_000)
    found = cut(lines, *[b"x" * 1_000_000] * 20, b"\nnext\n")
    assert found == [(1, b"x" * KEPT_BYTES, False), (2, b"next", True)]


def test_a_gigantic_line_without_an_end_is_reported() -> None:
    assert cut(LineCutter(10_000), b"x" * 20_000) == [(1, b"x" * KEPT_BYTES, False)]


@pytest.mark.parametrize(("before", "cutter"), [(b"", LineCutter), (b'[{"a":', ValueCutter)])
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
    def lines_from(start: FilePosition) -> list[Line]:
        cutter, rest = LineCutter(limit, start), text[start.offset :]
        found = [line for i in range(0, len(rest), size) for line in cutter.cut(rest[i : i + size])]
        return found + cutter.finish()

    everything = lines_from(FilePosition())
    for at, line in enumerate(everything):
        start = FilePosition("", line.number, line.end)
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
    others: list[Any], indent: int | None, size: int
) -> None:
    elements = [{"first": 1}, *others]
    text = json.dumps(elements, indent=indent).encode()
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    found = cut(ValueCutter(1_000), *chunks)
    assert [json.loads(element) for _, element, _ in found] == elements
    assert [(number, whole) for number, _, whole in found] == [
        (n, True) for n in range(1, len(elements) + 1)
    ]


def test_an_element_that_is_too_long_costs_neither_memory_nor_the_next_one() -> None:
    cutter = ValueCutter(10_000)
    pieces = [b'[{"a": "', *[b'\\"x,]' * 50_000] * 20, b'"}, {"b": [', *[b"1, " * 50_000] * 20]
    found = [line for piece in pieces for line in cutter.cut(piece)]
    assert len(cutter._buffer) < 300_000
    found += cutter.cut(b'2]}, {"c": 3}]')
    assert [(line.number, line.whole) for line in found] == [(1, False), (2, False), (3, True)]
    assert found[2].text == b'{"c": 3}'
    assert cutter.finish() == []


def test_an_array_that_is_cut_off_says_so_by_its_last_element() -> None:
    assert cut(ValueCutter(100), b'[{"a": 1}, {"b": ') == [
        (1, b'{"a": 1}', True),
        (2, b'{"b":', True),
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"[INFO] start\n{}\n", [b"[INFO] start", b"{}"]),
        (b"\n\n [\n{}\n]", [b"{}"]),
        (b"[", []),
        (b"[]", []),
        (b"[{}]\n{}\n[1]\n", [b"{}", b"{}", b"[1]"]),
        (b"[{}},{}]\n{}\n", [b"{}", b"}", b"{}", b"{}"]),
        (b"[]]]]\n{}", [b"]]]", b"{}"]),
        (b"  \n", []),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_text_is_an_array_only_where_it_begins_like_one_of_events(
    text: bytes, lines: list[bytes], size: int
) -> None:
    cutter = Cutter(1_000)
    found = [line for i in range(0, len(text), size) for line in cutter.cut(text[i : i + size])]
    assert [line.text for line in [*found, *cutter.finish()]] == lines


# --- any shape --------------------------------------------------------------------------

Shape = Callable[[list[Any]], str]


def _lines(events: list[Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def _pretty(events: list[Any]) -> str:
    return "\n".join(json.dumps(event, indent=2) for event in events)


def _body(events: list[Any], indent: int | None = None) -> str:
    head = {"api_key": 'k{["', "options": {"min_id_length": [1]}}
    return json.dumps({**head, "events": events, "rest": [{"a": "]"}]}, indent=indent)


SHAPES: dict[str, Shape] = {
    "lines": _lines,
    "lines as Windows writes them": lambda es: "\ufeff\r\n" + _lines(es).replace("\n", "\r\n\r\n"),
    "pretty": _pretty,
    "pretty with the first blank": lambda es: "\n \n" + _pretty(es),
    "concatenated": lambda es: "".join(map(json.dumps, es)),
    "pretty, concatenated": lambda es: "".join(json.dumps(event, indent=1) for event in es),
    "array": json.dumps,
    "array, one a line": lambda es: "[\n" + ",\n".join(map(json.dumps, es)) + "\n]\n",
    "pretty array": lambda es: json.dumps(es, indent=2),
    "array, not indented": lambda es: json.dumps(es, indent=0),
    "array with a comma too many": lambda es: (
        "[" + "".join(f"{json.dumps(e)},\n" for e in es) + "]"
    ),
    "commas behind": lambda es: ",\n".join(map(json.dumps, es)) + ",\n",
    "commas before": lambda es: "".join(f"\n, {json.dumps(event)}" for event in es),
    "sequence (RFC 7464)": lambda es: "".join(f"\x1e{json.dumps(event)}\n" for event in es),
    "body": _body,
    "pretty body": lambda es: "\ufeff" + _body(es, indent=4),
    "bodies": lambda es: "".join(_body([event]) + "\n" for event in es),
    "arrays": lambda es: "".join(json.dumps([event]) + "\n" for event in es),
}

TEXT = st.text(st.sampled_from('ab"\\,[]{}:é\n '), max_size=6)
EVENTS: st.SearchStrategy[list[Any]] = st.lists(
    st.fixed_dictionaries(
        {"event_type": TEXT, "event_properties": st.dictionaries(TEXT, JSON, max_size=3)}
    ),
    min_size=1,
    max_size=5,
)


def cut_all(text: bytes, size: int, max_bytes: int = 100_000) -> tuple[list[Line], str]:
    cutter = Cutter(max_bytes)
    found = [line for at in range(0, len(text), size) for line in cutter.cut(text[at : at + size])]
    return found + cutter.finish(), cutter.problem


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(SHAPES)), EVENTS, st.integers(1, 90))
def test_events_come_out_the_same_in_every_shape(shape: str, events: list[Any], size: int) -> None:
    found, problem = cut_all(SHAPES[shape](events).encode(), size)
    assert [json.loads(line.text) for line in found] == events
    assert problem == ""
    assert [line.whole for line in found] == [True] * len(events)


SET_IN_LINES = [name for name, shape in SHAPES.items() if shape([{}]).strip()[:2] in ("[\n", "[{")]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*SET_IN_LINES, "pretty"]), EVENTS, EVENTS, st.integers(1, 90))
def test_events_behind_lines_may_be_set_otherwise(
    shape: str, lines: list[Any], others: list[Any], size: int
) -> None:
    text = _lines(lines) + SHAPES[shape](others) + "\n" + _lines(lines)
    found, problem = cut_all(text.encode(), size)
    assert [json.loads(line.text) for line in found] == [*lines, *others, *lines]
    assert problem == ""
    assert [line.number for line in found] == list(range(1, len(found) + 1))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SET_IN_LINES), EVENTS, EVENTS, st.integers(1, 90))
def test_the_last_line_may_be_an_array_whether_a_line_break_follows_or_not(
    shape: str, lines: list[Any], others: list[Any], size: int
) -> None:
    text = _lines(lines) + SHAPES[shape](others).strip()
    found, problem = cut_all(text.encode(), size)
    assert [json.loads(line.text) for line in found] == [*lines, *others]
    assert problem == ""
    assert [line.number for line in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("broken", ["{", "{\n", "[", "[INFO] started", "[1, 2", "}", "]"])
def test_a_line_that_only_looks_like_more_swallows_no_event(broken: str) -> None:
    events = _few(40)
    text = _lines(events[:20]) + broken + "\n" + _lines(events[20:])
    found, _ = cut_all(text.encode(), 1_000)
    whole = [json.loads(line.text) for line in found if line.text.startswith(b'{"event_type"')]
    assert whole == events


@pytest.mark.parametrize("shape", SHAPES)
def test_only_lines_can_be_entered_in_the_middle(shape: str) -> None:
    events = [{"event_type": "a"}, {"event_type": "b"}]
    found, _ = cut_all(SHAPES[shape](events).encode(), 1_000)
    assert all(line.end for line in found) is shape.startswith("lines")


def _few(count: int) -> list[Any]:
    return [
        {"event_type": "a", "n": 1_000 + n, "event_properties": {"item": "x", "list": [{"k": n}]}}
        for n in range(count)
    ]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.integers(1, 400), st.data())
def test_damage_is_named_or_costs_only_the_events_that_it_hits(
    shape: str, size: int, data: st.DataObject
) -> None:
    events = _few(4)
    text = SHAPES[shape](events).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    byte = text[at] ^ data.draw(st.integers(1, 255))
    found, problem = cut_all(text[:at] + bytes([byte]) + text[at + 1 :], size)
    numbers = [-1, *(text.index(b"%d" % event["n"]) for event in events), len(text)]
    hit = {n for n in range(4) if numbers[n] < at < numbers[n + 2]}
    if "body" in shape and at < numbers[1]:
        hit = set(range(4))  # the body is one value, and does not say that it has events
    if at <= 1 or byte == 10:
        hit = set(range(4))  # it looks like another shape now
    decoded = [_decoded(line.text) for line in found]
    assert problem or {n for n in range(4) if events[n] not in decoded} <= hit


SAY_SO = {
    "array",
    "array, one a line",
    "pretty array",
    "array, not indented",
    "body",
    "pretty body",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_truncated_text_gives_its_whole_events_and_says_so_where_it_can(shape: str) -> None:
    events = _few(3)
    text = SHAPES[shape](events).encode().strip()
    for at in range(4, len(text)):
        found, problem = cut_all(text[:at], 50)
        whole = [value for line in found if (value := _decoded(line.text)) is not None]
        assert whole == events[: len(whole)]
        assert len(found) - len(whole) <= 1
        assert problem or shape not in SAY_SO


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        (b'{"a":1}\nINFO started\n{"b":2}\n', [b'{"a":1}', b"INFO started", b'{"b":2}']),
        (b'{"a": "cut\n{"b":2}\n{"c":3}\n', [b'{"a": "cut', b'{"b":2}', b'{"c":3}']),
        (b'{"a": 1, \n{"b":2}\n', [b'{"a": 1,', b'{"b":2}']),
        (b'{\n "a": "cut\n{\n "b": 2\n}\n', [b'{\n "a": "cut', b'{\n "b": 2\n}']),
        (b'{\n "a": [1,\n{\n "b": 2\n}\n]}\n', [b'{\n "a": [1,\n{\n "b": 2\n}\n]}']),
        (b'{\n "a":\n}\nINFO\n{\n "b": 2\n}', [b'{\n "a":\n}', b"INFO", b'{\n "b": 2\n}']),
        (b'[\n  {\n "a": "cut\n  },\n  {"b":2}\n]', [b'{\n "a": "cut\n  },', b'{"b":2}']),
        (b'[{"a": 1x,{"b":2},{"c":3}]', [b'{"a": 1x,', b'{"b":2}', b'{"c":3}']),
        (b'{"a": [1}{"b":2}', [b'{"a": [1}', b'{"b":2}']),
        (b"[" * 2_000 + b'\n{"a":1}\n', [b"[" * 2_000, b'{"a":1}']),
        (b'{"events":[{"event_type":"a"}],"x":1}\n{"c":3}', [b'{"event_type":"a"}', b'{"c":3}']),
        (b'{"event_type":"a","events":[1]}', [b'{"event_type":"a","events":[1]}']),
        (b'{"a":{"events":[{"b":1}]}}', [b'{"a":{"events":[{"b":1}]}}']),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1_000])
def test_a_broken_line_does_not_swallow_the_next(
    text: bytes, texts: list[bytes], size: int
) -> None:
    found, problem = cut_all(text, size, 3_000)
    assert [line.text for line in found] == texts
    assert problem == ""


@pytest.mark.parametrize("text", ['[{"a":1},', '[{"a":1}', '{"events":[{"a":1}]', '{"a":1}{"b":'])
def test_a_text_that_ends_too_early_says_so_and_gives_its_whole_events(text: str) -> None:
    found, problem = cut_all(text.encode(), 4)
    assert found[0].text == b'{"a":1}'
    assert problem == "damaged: its JSON ends too early"


def test_an_event_that_is_too_large_has_a_digest_of_all_of_it() -> None:
    def digest(text: bytes, size: int) -> bytes:
        [line] = [line for line in cut_all(text, size, 10_000)[0] if not line.whole]
        assert line.text.strip().startswith(b'{"a"')
        assert len(line.text) <= KEPT_BYTES
        return line.digest

    one, other = (b'{"a": "' + b"x" * 40_000 + end + b'"}' for end in (b"1", b"2"))
    small = b'\n{"b":\n1}'
    assert digest(one, 77) == digest(one, 100_000) != digest(other, 77)
    assert digest(one + small, 77) == digest(one + small, 100_000) != digest(other + small, 77)


@pytest.mark.parametrize(
    "text", [b"one\n" * 9, b"one", b"17\n18\n", b'"x"', b"{'a': 1}\n", b"[1, 2]"]
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_text_without_any_json_object_is_refused_as_a_whole(text: bytes, size: int) -> None:
    cutter = Cutter(1_000)
    found = [line for at in range(0, len(text), size) for line in cutter.cut(text[at : at + size])]
    assert [*found, *cutter.finish()] == []
    assert cutter.refused
    first = text.decode().splitlines()[0]
    assert cutter.problem == f"not JSON objects: it begins with {first!r}"


def test_a_text_is_refused_once_enough_of_it_has_been_seen_and_else_held_back() -> None:
    cutter = Cutter(1_000)
    assert cutter.cut(b"log line\n" * (FIRST_PIECES - 1)) == []
    found = cutter.cut(b'{"a":1}\n')
    assert [line.number for line in found] == list(range(1, FIRST_PIECES + 1))
    late = Cutter(1_000)
    assert late.cut(b"log line\n" * FIRST_PIECES + b'{"a":1}\n') == []
    assert late.refused


def test_separated_names_are_called_csv() -> None:
    _, problem = cut_all(b"user_id,event_type\nu-00001,A\n", 100)
    assert problem == "not JSON: CSV, its first line is 'user_id,event_type'"


# --- all lines at once --------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([b"{}", b"{c", b" {d\r", b"", b"b", b"{" * 9]), max_size=30).map(
        b"\n".join
    ),
    st.integers(1, 12),
)
def test_lines_that_are_cut_all_at_once_are_the_same(text: bytes, size: int) -> None:
    slow, fast = LineCutter(8), LineCutter(8)
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


# --- time in proportion to the length -----------------------------------------------------

LONG: dict[str, Callable[[int], bytes]] = {
    "line ends behind a broken value": lambda n: b'[{"a":1},{"b":"x\n' + b"\n" * n,
    "commas between line ends": lambda n: b'[{"a":1},{"b":"x\n' + b"\n," * n,
    "closed and blank": lambda n: b'[{"a":1},{"b":"x\n' + b"}   " * n,
    "an event that is no request body": lambda n: (
        b'{"event_type":"x"' + b',"events":[]' * (3 * n) + b"}"
    ),
    "tiny values": lambda n: b"[" + b"{}," * (n // 3),
}


@pytest.mark.parametrize("text", LONG)
def test_a_text_of_eight_times_the_length_takes_about_eight_times_as_long(text: str) -> None:
    def took_s(length: int) -> float:
        cutter, whole = ValueCutter(1 << 20), LONG[text](length)
        started_s = time.process_time()
        cutter.cut(whole)
        return time.process_time() - started_s

    short_s, long_s = (min(took_s(length) for _ in range(3)) for length in (6_000, 48_000))
    assert long_s < 24 * short_s + 0.001
