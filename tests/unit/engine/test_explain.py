"""``explain`` knows every word that the program uses for people."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from amplitude_intercom.engine.commands.explain import explain, words
from amplitude_intercom.engine.delivery.gate import State
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.relay.host import RelayState
from amplitude_intercom.engine.settings_meanings import MEANINGS
from amplitude_intercom.transports.amplitude import BadEventReason
from amplitude_intercom.transports.reasons import Reason
from support import reference_tables


def test_every_setting_has_a_meaning_and_no_other_has() -> None:
    assert set(reference_tables.settings_keys()) == set(MEANINGS)


def test_every_word_has_a_sentence_and_every_dead_letter_a_remedy() -> None:
    assert all(word.means for word in words())
    assert all(reason.remedy for reason in DeadReason)


def test_every_word_of_a_closed_set_is_explained() -> None:
    explained = {(word.word, word.means) for word in words()}
    sets = Reason.__subclasses__()
    assert {RelayState, State, DeadReason} <= set(sets)
    assert {(one.value, one.means) for members in sets for one in members} <= explained


def test_every_fault_of_an_event_is_a_reason_of_dead_letters() -> None:
    assert set(get_args(BadEventReason)) <= set(DeadReason)


@pytest.mark.parametrize(
    "asked",
    "user_not_found User_Not_Found `loop_guard` max_event_bytes http [sync.events]"
    " amplitude_intercom_pending pending spool_full unresolved text_cut delivery".split(),
)
def test_a_word_is_found_however_it_is_asked_for(
    asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(asked, as_json=False) == 0
    assert asked.strip("`[]").lower() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("sync[0].amplitude_api_keys", "sync.amplitude_api_keys"),
        ("sync[0].events.select[1]", "sync.events.select"),
        ("sync[1].events.select[0].where[2]", "sync.events.select"),
        ("sync.events.rename.Signed Up", "sync.events.rename"),
        ("sources.folder.sync", "sources"),
        ("data-dir", "data_dir"),
        (" not-selected ", "not_selected"),
    ],
)
def test_a_key_is_found_as_messages_write_it(
    asked: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(asked, as_json=False) == 0
    assert f"{found}:" in capsys.readouterr().out


def test_all_meanings_of_a_word_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("refused", as_json=True) == 0
    assert len({word["kind"] for word in json.loads(capsys.readouterr().out)}) == 2


def test_without_a_word_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(None, as_json=False) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(words()))


def test_a_part_of_words_is_answered_by_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("Parked", as_json=False) == 2
    said = capsys.readouterr().err
    assert (
        said
        == "error: there is no word `Parked`; there is `parked_users`, `oldest_parked_seconds`\n"
    )


@pytest.mark.parametrize("asked", ["", "a", "_", "event"])
def test_a_part_of_many_words_names_none_of_them(
    asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(asked, as_json=False) == 2
    assert "there is `" not in capsys.readouterr().err


def test_a_word_that_is_none_is_answered_by_the_one_like_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert explain("user_not_fund", as_json=False) == 2
    assert "did you mean `user_not_found`" in capsys.readouterr().err
