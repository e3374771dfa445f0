"""Globs: every rule of theirs, and the time that they take."""

from __future__ import annotations

import random
import time

import pytest

from amplitude_intercom.engine.rules.globs import CHARACTERS_KEPT, Glob


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("**", "", True),
        ("**", "a/b\n/c", True),
        ("***", "a/b", True),
        ("*", "a\nb", True),
        ("*", "a/b", False),
        ("a*/", "a/", True),
        ("**/*.html", "a/b/c.html", True),
        ("**/*.html", "a/b/c.html/d", False),
        ("[!]", "[!]", True),
        ("[!]]", "x", True),
        ("[!]]", "]", False),
        ("[a-c-e]", "-", True),
        ("[/]", "/", False),
        ("[+-0]", "/", False),
        ("[ä-ü]", "ö", True),
        ("\\*", "\\anything", True),
        ("😀?", "😀😀", True),
        ("aa", "a", False),
        ("a?a", "aaa", True),
    ],
)
def test_a_glob_matches_by_its_rules(pattern: str, text: str, expected: bool) -> None:
    assert Glob(pattern).matches(text) is expected


def test_a_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="the range z-a is upside down"):
        Glob("x[z-a]")


HOSTILE = [
    ("**example.com*checkout", "example.com"),
    ("**a*b**c*d", "a"),
    ("**a*b**c*d", "ab"),
    ("*a" * 20 + "b", "a"),
    ("**a" * 20 + "b", "a"),
    ("**?*[a-z]*b", "a"),
]


@pytest.mark.parametrize(("pattern", "repeated"), HOSTILE)
def test_a_text_four_times_as_long_takes_about_four_times_as_long(
    pattern: str, repeated: str
) -> None:
    glob = Glob(pattern)

    def took_s(length: int) -> float:
        text = (repeated * length)[:length]
        begun_s = time.process_time()
        assert not glob.matches(text)
        return time.process_time() - begun_s

    short_s, long_s = (min(took_s(length) for _ in range(5)) for length in (4_000, 16_000))
    assert long_s < 8 * short_s, "a quadratic matcher takes sixteen times as long"


def test_a_text_of_more_characters_than_are_remembered_matches_all_the_same() -> None:
    alphabet = [chr(0x4E00 + n) for n in range(4 * CHARACTERS_KEPT)]
    text = "".join(random.Random(1).choices(alphabet, k=5_000))
    assert Glob(f"*{text[2_000]}*{text[-1]}").matches(text)
    assert not Glob(f"*[!{text[-1]}]").matches(text)
