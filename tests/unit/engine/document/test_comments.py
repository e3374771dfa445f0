"""Secrets in comments: known ones are hidden, however many comments and secrets there are."""

from __future__ import annotations

import time

from amplitude_intercom.engine.document.comments import Comment, hidden_in

MOST_CPU_S = 8.0
"""One secret after the other in one comment after the other took a minute."""


def hidden(comments: list[str], *secrets: str) -> list[str]:
    return list(hidden_in([Comment(one) for one in comments], secrets))


def test_many_secrets_are_hidden_in_many_comments_in_a_bounded_time() -> None:
    secrets = [f"secret {n} of many" for n in range(10_000)]
    comments = ["# a comment"] * 50_000 + ["# it is secret 9999 of many"]
    began_s = time.process_time()
    seen = hidden(comments, *secrets)
    assert time.process_time() - began_s < MOST_CPU_S
    assert seen == [*comments[:-1], "# it is ***"]


def test_a_secret_is_hidden_in_each_comment_alone() -> None:
    comments = ["# one word", "# and another", "#"]
    assert hidden(comments, "word\n# and", "another", "one word and") == [
        "# one word",
        "# and ***",
        "#",
    ]
    assert hidden([], "word") == []


def test_of_a_secret_in_a_secret_the_longer_one_is_hidden_whole() -> None:
    assert hidden(["# open sesame now"], "open", "open sesame") == ["# *** now"]
