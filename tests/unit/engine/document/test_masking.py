"""What is shown of a settings text, and what a ``***`` stands for when it comes back."""

from __future__ import annotations

import tomllib

import pytest

from amplitude_intercom.engine.document.masking import masked, with_secrets_kept
from amplitude_intercom.engine.document.refusals import CannotKeep, NotToml
from support.secret_settings import KEY, PRESENT, TOKEN

# --- what is shown ------------------------------------------------------------------------

LINES = {
    'access_token = "env:TOKEN"': 'access_token = "env:TOKEN"',
    'access_token = "file:data/secrets/x"': 'access_token = "file:data/secrets/x"',
    'access_token = "literal"': 'access_token = "***"',
    'access_token = ""': 'access_token = "***"',
    "access_token = 1234": 'access_token = "***"',
    'access_token = ["literal"]': 'access_token = ["***"]',
    'acces_token = "literal"': 'acces_token = "***"',
    'region = "us"': 'region = "us"',
    "timeout_s = 5.0": "timeout_s = 5.0",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_intercom_shows_no_secret(line: str) -> None:
    head = "[[sync]]\n[sync.intercom]\n"
    assert masked(f"{head}{line} # why\n") == f"{head}{LINES[line]} # why\n"


KEYS = {
    KEY: "***cdef",
    "env:KEY": "env:KEY",
    "*": "*",
    "eleven-char": "***",
    "twelve-chars": "***hars",
    "ends-with-a-/+=/": "***",
}


@pytest.mark.parametrize("key", KEYS)
def test_of_an_amplitude_key_the_end_is_shown_where_it_is_long_enough(key: str) -> None:
    text = 'sync = [{{ amplitude_api_keys = ["{}"] }}]'
    assert masked(text.format(key)) == text.format(KEYS[key])


COMMENTS = {
    '# access_token = "literal"': '# access_token = "***"',
    "#access_token='literal' # old": "#access_token='***' # old",
    '## sync.intercom.access_token = "literal"': '## sync.intercom.access_token = "***"',
    '# intercom = { region = "us", access_token = "x" }': (
        '# intercom = { region = "us", access_token = "***" }'
    ),
    '# amplitude_api_keys = ["1", "env:B", "*"]': '# amplitude_api_keys = ["***", "env:B", "*"]',
    '# password = "hush"': '# password = "***"',
    '# api_key = "of the first version"': '# api_key = "***"',
    '# region = "eu"': '# region = "eu"',
    '# money = { price = "currency" }': '# money = { price = "currency" }',
    "# it was present-secret until May": "# it was *** until May",
    f"# {TOKEN}": "# ***",
    "# of https://example.org/a/long/page-about-things-2026": (
        "# of https://example.org/a/long/page-about-things-2026"
    ),
    "# see file:/etc/amplitude-intercom-2026/token-01": (
        "# see file:/etc/amplitude-intercom-2026/token-01"
    ),
    "# a sentence, with `code` and 100 %": "# a sentence, with `code` and 100 %",
}


@pytest.mark.parametrize("comment", COMMENTS)
def test_a_comment_shows_no_secret_that_can_be_known(comment: str) -> None:
    text = '{}\n[admin]\ntoken = "present-secret"\n'
    seen = masked(text.format(comment))
    assert seen == text.format(COMMENTS[comment]).replace('"present-secret"', '"***"')
    assert with_secrets_kept(seen, text.format(comment)).text == text.format(comment)


def test_lists_that_are_commented_out_show_no_secret() -> None:
    text = '# amplitude_api_keys = [\n#   "one",\n#   "two",\n# ]\n# name = "a"\n'
    assert masked(text) == text.replace('"one"', '"***"').replace('"two"', '"***"')
    text = '# api_keys = [\n#  "one"\n# ], token = [\n#  "two"\n# ]\n# region = "us"\n'
    assert masked(text) == text.replace('"one"', '"***"').replace('"two"', '"***"')
    text = 'sync = [{ amplitude_api_keys = [\n  # "one",\n] }]  # "a"\n'
    assert masked(text) == text.replace('"one"', '"***"')


def test_the_default_settings_file_is_shown_whole() -> None:
    text = (
        '#money = {"price" = "currency"}\n#when_full = "drop_oldest"\n#token = "env:ADMIN_TOKEN"\n'
    )
    assert masked(text) == text


def test_a_text_that_is_not_toml_is_not_shown() -> None:
    with pytest.raises(NotToml, match="line 2") as refused:
        masked('a = 1\ntoken = "secret\n')
    assert "secret" not in str(refused.value)


def test_long_comments_and_deep_values_take_no_time() -> None:
    for comment in (
        "# " + "a" * 200_000,
        "#" + " " * 200_000,
        "# " + "a " * 100_000,
        '# "' * 50_000,
    ):
        masked(comment)
    with pytest.raises(NotToml):
        masked(f"a = {'[' * 100_000}{']' * 100_000}")


# --- what comes back ----------------------------------------------------------------------


def test_a_text_comes_back_with_each_secret() -> None:
    kept = with_secrets_kept(masked(PRESENT), PRESENT)
    assert kept.text == PRESENT
    assert (kept.typed, repr(kept)) == (frozenset(), "KeptText(***)")


def test_a_sync_is_known_by_its_name() -> None:
    head, _, last = masked(PRESENT).rpartition("\n[[sync]]")
    before, _, first = head.rpartition("\n[[sync]]")
    kept = with_secrets_kept(f"{before}\n[[sync]]{last}\n[[sync]]{first}\n", PRESENT)
    tokens = {s["name"]: s["intercom"]["access_token"] for s in tomllib.loads(kept.text)["sync"]}
    assert tokens == {"a": TOKEN, "b": "token of\nb"}


def test_a_typed_secret_is_taken_and_known_as_typed() -> None:
    typed = masked(PRESENT).replace('access_token = "***", region', 'access_token = "new", region')
    kept = with_secrets_kept(typed, PRESENT)
    assert tomllib.loads(kept.text)["sync"][0]["intercom"]["access_token"] == "new"
    assert kept.typed == {"new"}


def test_names_of_secrets_and_any_key_are_not_known_as_typed() -> None:
    typed = 'sync = [{ amplitude_api_keys = ["*", "env:X"], intercom.access_token = "file:y" }]'
    assert with_secrets_kept(typed, PRESENT).typed == frozenset()


def test_keys_of_a_list_come_back_wherever_they_stand() -> None:
    typed = 'sync = [{ name = "a", amplitude_api_keys = ["new", "*", "***cdef", "***"] }]'
    with pytest.raises(CannotKeep, match=r"sync\[0\].amplitude_api_keys\[3\]"):
        with_secrets_kept(typed.replace('"***"', '"***9999"'), PRESENT)
    kept = with_secrets_kept(typed.replace('["new"', '["***cdef", "n"'), PRESENT)
    keys = tomllib.loads(kept.text)["sync"][0]["amplitude_api_keys"]
    assert keys[0] == keys[3] == KEY
    assert (keys[4], {*kept.typed}) == ("brief", {"n"})  # two were shown so: the index decides


@pytest.mark.parametrize(
    "typed",
    [
        'sync = [{ name = "c", intercom.access_token = "***" }]',
        'sync = [{ name = "a", intercom.token = "***" }]',
        'relay = [{ name = "a", amplitude_api_keys = ["***cdef"] }]',
        'export.secret_key = "***"',
        'sync = [{ name = "a", amplitude_api_keys = ["***0000"] }]',
        'sync = [{ intercom.access_token = "***" }]',
        'sync = ["***"]',
    ],
)
def test_a_mask_that_stands_for_nothing_is_refused(typed: str) -> None:
    with pytest.raises(CannotKeep, match="type it") as refused:
        with_secrets_kept(typed, PRESENT)
    assert TOKEN not in str(refused.value)


def test_a_mask_instead_of_a_name_keeps_the_name() -> None:
    kept = with_secrets_kept('sources.kafka.password = "***"', PRESENT)
    assert kept.text == 'sources.kafka.password = "env:KAFKA"'


def test_a_comment_that_was_changed_is_taken_as_it_came() -> None:
    kept = with_secrets_kept('# it was *** until June\n[admin]\ntoken = "***"', PRESENT)
    assert kept.text.startswith("# it was *** until June\n")


MOVES = {
    "out of its list": (
        'sync = [{ amplitude_api_keys = [\n  # "one",\n] }]\n',
        'sync = []\n# "***",\n',
    ),
    "out of a list that is commented out": (
        '# api_keys = [\n#  "one",\n# ]\na = 1\n',
        '#  "***",\n',
    ),
    "beside another secret": (
        "[admin]\ntoken = 'one-secret' # is one-secret\n",
        "[admin]\ntoken = 'another' # is ***\n",
    ),
    "behind the opening of a list that goes": (
        '# api_keys = [\n# api_keys = [\n#  "one",\n# ]\na = 1\n',
        '# api_keys = [ ]\n#  "***",\n',
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_comment_that_would_show_its_secret_elsewhere_loses_it(move: str) -> None:
    present, typed = MOVES[move]
    assert "one" not in masked(present)
    kept = with_secrets_kept(typed, present)
    assert kept.text == typed
    assert "one" not in masked(kept.text)


def test_a_comment_that_is_shown_at_another_place_stays() -> None:
    text = '# "one",\nsync = [{ amplitude_api_keys = [\n  # "one",\n] }]\n'
    assert with_secrets_kept(masked(text), text).text == text
