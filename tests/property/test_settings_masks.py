"""Whatever the file looks like: no secret of it shows, and each comes back to its own key."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.document.forms import shown, shown_sync, sync_with_secrets_kept
from amplitude_intercom.engine.document.locating import located, value_of
from amplitude_intercom.engine.document.masking import masked, with_secrets_kept
from amplitude_intercom.engine.document.patches import difference, patch
from amplitude_intercom.engine.document.refusals import CannotPatch, DocumentError, NotToml
from amplitude_intercom.engine.document.tables import leaves
from support.settings_texts import KEYS, Writer, changed, random_table

RANDOM = st.integers(0, 2**32).map(Random)
SECRETS = (
    "literal-token-",
    "hush-hush",
    "admin-literal-secret",
    "relay-key-0123",
    KEYS[0],
    'qu"ote',
)
TOML = st.text(st.sampled_from("ab.=[]{},\"'#\\ \n\r\tx01-_:Zé*"), max_size=40)


def commented(random: Random, text: str) -> str:
    """Return a text with secrets in comments as well."""
    lines = text.split("\n")
    for said in (
        '# access_token = "literal-token-of-old"',
        "#  token='literal-token-2'  # was",
        '#   intercom = { region = "eu", access_token = "literal-token-3" }',
        "# literal-token-a-0 is the token of a" if "literal-token-a-0" in text else "# nothing",
        '# [sources.x]\n#password = "hush-hush-2"\n#list = [\n# "hush-hush-3",\n# ]\n# end',
    ):
        if random.random() < 0.5:
            lines.insert(0, said)
    bom, rest = ("\ufeff", "\n".join(lines).replace("\ufeff", ""))
    return (bom if text.startswith(bom) else "") + rest


@settings(max_examples=300, deadline=None)
@given(RANDOM)
def test_no_secret_shows_and_all_come_back(random: Random) -> None:
    text = commented(random, Writer(random).text(random_table(random)))
    seen = masked(text)
    assert [secret for secret in SECRETS if secret in seen] == []
    kept = with_secrets_kept(seen, text)
    assert kept.text == text
    assert kept.typed == frozenset()


@settings(max_examples=300, deadline=None)
@given(RANDOM)
def test_a_masked_text_that_is_edited_gets_each_secret_at_its_own_key(random: Random) -> None:
    table = random_table(random)
    text = Writer(random).text(table)
    random.shuffle(table["sync"])
    for sync in table["sync"]:
        sync["enabled"] = random.random() < 0.5
    typed = masked(Writer(random).text(table))
    assert tomllib.loads(with_secrets_kept(typed, text).text.removeprefix("\ufeff")) == table


@settings(max_examples=200, deadline=None)
@given(RANDOM)
def test_neither_difference_nor_patch_nor_form_shows_a_secret(random: Random) -> None:
    table = random_table(random)
    old = Writer(random).text(table)
    new = Writer(random).text(changed(random, table))
    outputs = [difference(old, new, "settings.toml"), str(shown(table))]
    with suppress(CannotPatch):
        outputs.append(patch(old, new, "settings.toml"))
    assert [secret for secret in SECRETS if any(secret in output for output in outputs)] == []


@settings(max_examples=200, deadline=None)
@given(RANDOM)
def test_a_form_that_comes_back_as_it_was_shown_is_the_same_sync(random: Random) -> None:
    for sync in random_table(random)["sync"]:
        kept = sync_with_secrets_kept(shown_sync(sync), sync)
        assert kept.table == sync
        assert kept.typed == frozenset()


@settings(max_examples=500, deadline=None)
@given(TOML)
def test_every_value_of_any_toml_is_found_where_it_is(text: str) -> None:
    try:
        found = located(text)
    except NotToml:
        return
    table = tomllib.loads(text)
    assert {p: value_of(text[s.start : s.end]) for p, s in found.values.items()} == dict(
        leaves(table)
    )


@settings(max_examples=500, deadline=None)
@given(TOML, TOML)
def test_any_text_is_masked_and_taken_back_or_refused(typed: str, present: str) -> None:
    with suppress(DocumentError):
        masked(typed)
    with suppress(DocumentError):
        with_secrets_kept(typed, present)
