"""Settings made fit for another place to run: few edits, comments kept, nothing guessed."""

from __future__ import annotations

import difflib
import re
import tomllib

import pytest

from amplitude_intercom.engine.deploy.adapting import Installation, adapted, settings_of
from amplitude_intercom.engine.errors import SettingsError

HERE = """\
# Ours.
data_dir = "data"  # on the laptop

[http]
listen = "127.0.0.1:9000"  # for the SDKs

[admin]
#token = "env:ADMIN_TOKEN"

[[sync]]
name = "shop"
amplitude_api_keys = ["file:data/secrets/amplitude-api-key", "a-public-key"]
intercom = { access_token = 'file:/run/keys/token.txt', region = "eu" }  # Europe's
"""

CONTAINER = Installation("/data", most_drain_s=7.0)
SYSTEMD = Installation("/var/lib/ours", secrets_in_files=True, has_own_network=False)


def changed_lines(text: str, made: str) -> list[str]:
    lines = difflib.ndiff(text.splitlines(), made.splitlines())
    return [line.removeprefix("+ ") for line in lines if line.startswith("+ ")]


def test_a_container_is_reached_from_elsewhere_and_has_its_secrets_in_the_environment() -> None:
    made = adapted(HERE, CONTAINER)
    assert changed_lines(HERE, made.text) == [
        'data_dir = "/data"  # on the laptop',
        "drain_deadline_s = 7",
        'listen = "0.0.0.0:9000"  # for the SDKs',
        'listen = "0.0.0.0:8711"',
        'token = "env:ADMIN_TOKEN"',
        'amplitude_api_keys = ["env:AMPLITUDE_API_KEY", "a-public-key"]',
        'intercom = { access_token = "env:TOKEN_TXT", region = "eu" }  # Europe\'s',
    ]
    assert made.secrets == ("ADMIN_TOKEN", "AMPLITUDE_API_KEY", "TOKEN_TXT")
    assert "file:/run/keys/token.txt is env:TOKEN_TXT" in made.changes


def test_a_service_keeps_its_addresses_and_has_its_secrets_beside_the_settings() -> None:
    made = adapted(HERE, SYSTEMD)
    assert changed_lines(HERE, made.text) == [
        'data_dir = "/var/lib/ours"  # on the laptop',
        'amplitude_api_keys = ["file:amplitude-api-key", "a-public-key"]',
        'intercom = { access_token = "file:token.txt", region = "eu" }  # Europe\'s',
    ]
    assert made.secrets == ("amplitude-api-key", "token.txt")


def test_settings_that_fit_already_stay_as_they_are() -> None:
    for installation in (CONTAINER, SYSTEMD):
        fit = adapted(HERE, installation)
        again = adapted(fit.text, installation)
        assert (again.text, again.changes) == (fit.text, ())


def test_a_line_ends_at_a_line_feed_alone() -> None:
    text = HERE.replace("# Ours.", "# Ours.\u2028not another line").replace("shop", "sh-p")
    assert adapted(text, CONTAINER).text.startswith("# Ours.\u2028not another line\ndata_dir")


def test_secrets_with_one_name_in_two_folders_stay_two() -> None:
    text = HERE.replace("file:/run/keys/token.txt", "file:other/amplitude-api-key")
    assert adapted(text, SYSTEMD).secrets == ("amplitude-api-key", "amplitude-api-key-2")
    names = adapted(text, CONTAINER).secrets
    assert names == ("ADMIN_TOKEN", "AMPLITUDE_API_KEY", "AMPLITUDE_API_KEY_2")


def test_a_missing_admin_port_is_added_where_health_is_asked_for() -> None:
    made = adapted(HERE.replace("[admin]", "[log]"), CONTAINER)
    admin = settings_of(made.text).admin
    assert admin is not None
    assert admin.listen == "0.0.0.0:8711"


@pytest.mark.parametrize(
    ("listen", "inside"),
    [
        ("127.0.0.1:9000", "0.0.0.0:9000"),
        ("192.168.1.5:9000", "0.0.0.0:9000"),
        ("[fe80::7]:9000", "0.0.0.0:9000"),
        ("shop.example:9000", "0.0.0.0:9000"),
        ("0.0.0.0:9000", "0.0.0.0:9000"),
        ("[::]:9000", "[::]:9000"),
    ],
)
def test_addresses_of_this_machine_are_not_taken_into_a_container(listen: str, inside: str) -> None:
    made = settings_of(adapted(HERE.replace("127.0.0.1:9000", listen), CONTAINER).text)
    assert made.http is not None
    assert made.http.listen == inside
    kept = settings_of(adapted(HERE.replace("127.0.0.1:9000", listen), SYSTEMD).text)
    assert kept.http is not None
    assert kept.http.listen == listen


def test_two_servers_that_differ_in_their_hosts_alone_need_two_ports_in_a_container() -> None:
    text = HERE.replace("[admin]", '[admin]\nlisten = "192.168.1.5:9000"\ntoken = "env:T"')
    assert adapted(text, SYSTEMD)
    with pytest.raises(SettingsError, match=r"admin.listen: port 9000 is that of http.listen too"):
        adapted(text, CONTAINER)


@pytest.mark.parametrize("name", ["MY TOKEN", "A;B", "7UP", "", "A-B", "%n"])
def test_a_variable_gets_a_name_that_a_shell_and_kubernetes_take(name: str) -> None:
    made = adapted(HERE.replace("file:/run/keys/token.txt", f"env:{name}"), CONTAINER)
    assert re.fullmatch("[A-Z_][A-Z0-9_]*", made.secrets[-1])
    assert f'"env:{made.secrets[-1]}"' in made.text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("'file:/run/keys/token.txt'", '"dG9rOmFiYw=="', "access_token: it is spelled out"),
        ('data_dir = "data"', 'data_dir = """data"""', 'write into it: data_dir = "/data"'),
        ('name = "shop"', "name = 5", "sync[0].name: Expected"),
        ("[http]", "[http", "not TOML"),
    ],
)
def test_what_cannot_be_edited_is_said_and_no_token_is_quoted(
    old: str, new: str, said: str
) -> None:
    assert old in HERE
    with pytest.raises(SettingsError) as raised:
        adapted(HERE.replace(old, new), CONTAINER)
    assert said in str(raised.value)
    assert "dG9r" not in str(raised.value)


def test_the_text_means_the_changed_settings_and_nothing_else() -> None:
    before, after = tomllib.loads(HERE), tomllib.loads(adapted(HERE, CONTAINER).text)
    assert after["sync"][0]["intercom"].pop("access_token") == "env:TOKEN_TXT"
    before["sync"][0]["intercom"].pop("access_token")
    before["sync"][0]["amplitude_api_keys"][0] = "env:AMPLITUDE_API_KEY"
    assert after["sync"] == before["sync"]
