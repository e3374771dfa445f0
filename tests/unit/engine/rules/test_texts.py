"""Texts and names, cut and cleaned to the form that Intercom accepts."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.rules.texts import cut, fit_key, fit_name, is_blank

FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 254 + "é", "x" * 254 + "é"),
        ("x" * 254 + "e\u0301", "x" * 254),
        ("x" * 254 + FAMILY, "x" * 254),
        ("x" * 253 + FAMILY, "x" * 253),
        ("x" * 254 + "👍🏽", "x" * 254),
        ("x" * 254 + "🇳🇬", "x" * 254),
        ("x" * 250 + FAMILY + "y", "x" * 250 + FAMILY),
        ("\u0301" * 300, "\u0301" * 223),
    ],
)
def test_a_text_is_not_cut_inside_of_a_character(text: str, kept: str) -> None:
    assert cut(text) == kept


def test_names_and_keys_lose_the_characters_that_intercom_refuses() -> None:
    assert fit_name("a.b$c d") == "a-b-c d"
    assert (fit_name("a\0b\x1b\ud83d"), fit_key("a\0b\x85\ud83d")) == ("a-b--", "a_b__")
    assert fit_key("a.b$~`!@#%^&*'{}|\\\"\0c d-e") == "a_b" + "_" * 17 + "c d-e"
    for text in ("a.b", "x" * 999, "👍🏽" * 300, ""):
        assert fit_key(fit_key(text)) == fit_key(text)
        assert fit_name(fit_name(text)) == fit_name(text)
        assert len(fit_key(text)) <= 255


def test_a_name_is_blank_if_only_its_cut_end_is_visible() -> None:
    assert is_blank(" " * 255 + "x")
    assert not is_blank(" " * 254 + "x")
    assert is_blank("\n" * 255 + "x")
