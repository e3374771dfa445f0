"""What is said of a word that is no reason."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.reasons import DeadReason, no_dead_reason


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("user_not_fond", "corrupt; did you mean `user_not_found`?"),
        ("Too-Old", "corrupt; did you mean `too_old`?"),
        ("zzz", ", corrupt"),
    ],
)
def test_a_word_that_is_no_reason_of_dead_letters_gets_the_one_it_may_have_meant(
    word: str, end: str
) -> None:
    said = no_dead_reason(word)
    assert said.startswith(f"no dead letter has the reason `{word}`, there are invalid_json, ")
    assert said.endswith(end)
    assert all(reason in said for reason in DeadReason)


def test_no_more_of_such_a_word_is_said_than_shows_which_it_is() -> None:
    assert "`" + "x" * 64 + "`" in no_dead_reason("x" * 10_000)
