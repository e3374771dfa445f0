"""Whatever was answered, the written settings load and mean exactly that."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.init_text import Answers, Layout, Server, settings_text
from amplitude_intercom.engine.config import load
from amplitude_intercom.engine.deploy.adapting import settings_of
from amplitude_intercom.engine.rules.texts import is_blank, is_legal_key
from amplitude_intercom.engine.settings import (
    Admin,
    Events,
    Http,
    Intercom,
    Mapping,
    Relay,
    Selector,
    Settings,
    SpoolSettings,
    Users,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TYPES = TEXT.filter(lambda text: not is_blank(text) and not text.endswith("*") and text != "_all")
NAMES = TEXT.filter(is_legal_key).filter(lambda t: not t.startswith(("user.", "event.")))
URLS = st.sampled_from(["http://127.0.0.1:8720", "https://proxy.example/intercom"])
SECRETS = st.sampled_from(["ordinary-secret", "with space", "'\"\\#=[]"])


def hosts(*regions: str) -> st.SearchStrategy[Server]:
    return st.builds(Server, st.sampled_from(regions), st.none() | URLS)


ANSWERS = st.builds(
    Answers,
    amplitude_key=SECRETS,
    intercom_token=SECRETS,
    intercom=hosts("us", "eu", "au"),
    relay=st.none() | hosts("us", "eu"),
    sync=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True),
    identifier=st.sampled_from(["external_id", "email"]),
    source=st.sampled_from(["user_id", "device_id", "user.e-mail", 'event."x"']),
    properties=st.lists(NAMES, max_size=30, unique=True),
    create_missing=st.booleans(),
    events=st.lists(TYPES, max_size=60, unique=True),
    metadata=st.lists(NAMES, max_size=30, unique=True),
    layout=st.builds(
        Layout,
        data_dir=st.sampled_from(["data", "/var/lib/x y", 'quo"ted']),
        http=st.just("0.0.0.0:9000"),
        admin=st.sampled_from(["127.0.0.1:9001", "[::1]:9001"]),
        admin_token=st.none() | SECRETS,
    ),
)


def meant(made: Settings, folder: Path) -> Answers:
    """Return the answers that settings stand for."""
    (sync,) = made.sync
    assert made.http is not None
    assert made.admin is not None
    for selector in sync.events.select:
        assert selector == Selector(selector.types)
    token = made.admin.token
    return Answers(
        amplitude_key=sync.amplitude_api_keys[0].reveal(),
        intercom_token=sync.intercom.access_token.reveal(),
        intercom=Server(sync.intercom.region, sync.intercom.base_url),
        relay=Server(made.relay[0].region, made.relay[0].base_url) if made.relay else None,
        sync=sync.name,
        identifier=sync.mapping.identifier,
        source=sync.mapping.source,
        properties=list(map(str, sync.users.properties)),
        create_missing=sync.users.create_missing_attributes,
        events=[name for selector in sync.events.select for name in selector.types],
        metadata=list(map(str, sync.events.metadata)),
        layout=Layout(
            made.data_dir.removeprefix(f"{folder}/"),
            made.http.listen,
            made.admin.listen,
            token.reveal() if token else None,
        ),
    )


def as_written(host: Server | None) -> Server | None:
    """Return a host as the file has it: an address stands instead of a region."""
    return host if host is None or host.url is None else Server(url=host.url)


@given(ANSWERS)
@settings(max_examples=200, deadline=None)
def test_the_written_settings_mean_exactly_what_was_answered(answers: Answers) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "amplitude-intercom.toml")
        path.write_text(settings_text(answers), "utf-8")
        expected = msgspec.structs.replace(
            answers,
            intercom=as_written(answers.intercom) or Server(),
            relay=as_written(answers.relay),
        )
        assert meant(load(path), Path(folder)) == expected


@given(ANSWERS)
@settings(max_examples=50, deadline=None)
def test_every_key_that_is_off_can_be_switched_on(answers: Answers) -> None:
    lines = settings_text(answers).split("\n")
    on = [line.removeprefix("#") if re.match(r"#\w+ = ", line) else line for line in lines]
    assert on != lines
    settings_of("\n".join(on))


def test_the_answers_that_nobody_gave_are_the_settings_own_defaults() -> None:
    made = settings_of(settings_text(Answers(amplitude_key="env:A", intercom_token="env:B")))
    (sync,) = made.sync
    assert made.relay == [Relay()]
    assert (made.http, made.admin, made.spool) == (Http(), Admin(), SpoolSettings())
    assert (sync.mapping, sync.users, sync.events) == (Mapping(), Users(), Events())
    assert sync.intercom == Intercom(access_token=sync.intercom.access_token)
    assert (
        tomllib.loads(settings_text(Answers(amplitude_key="a", intercom_token="b")))["data_dir"]
        == Settings(sync=[sync]).data_dir
    )
