"""Files of targets: odd texts and names stay what they are in each file's own language."""

from __future__ import annotations

import re

import pytest
import yaml

from amplitude_intercom.engine.deploy.targets import (
    CONTAINER_DRAIN_S,
    _unit_word,
    container,
    kubernetes,
    systemd,
)
from amplitude_intercom.transports.sockets import CLOSING_S, LAST_HEADS_S

DOCKER_STOP_S = 10.0

HERE = """\
data_dir = "data"

[http]
listen = "127.0.0.1:9000"

[[sync]]
name = "shop"
amplitude_api_keys = ["env:KEY"]
intercom = { access_token = "env:TOKEN" }
events = { select = [{ types = ["Signed Up"] }] }
"""


@pytest.mark.parametrize(
    "text",
    [
        HERE,
        HERE.replace("Signed", "sh\u0085op"),
        HERE.replace("Signed", "sh\u2028op"),
        HERE.replace("Signed", "shöp \U0001f600"),
        HERE.replace('"shop"', '"shop"  # \u0085 comment'),
        f"   {HERE}",
        HERE.replace("data_dir", "\t\n   \n# tabs\tand blanks  \ndata_dir"),
        HERE + "# --- @VOLUME@ @STORAGE@ @IMAGE@ %n ${HOME} {{ .Values }}\n",
        HERE + "\n\n\n",
        HERE.replace('"Signed Up"', '"""Signed\n   \n\n  Up\n"""'),
        HERE.replace("Signed", "\\u0022: [&a, *b, !!x] |2"),
    ],
)
def test_the_settings_are_in_the_manifest_as_they_were_adapted(text: str) -> None:
    files, made = kubernetes(text)
    settings = next(yaml.safe_load_all(files["kubernetes.yaml"]))
    assert settings["data"]["amplitude-intercom.toml"].rstrip("\n") == made.text.rstrip("\n")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/ours/bin/program", "/opt/ours/bin/program"),
        ("/opt/our tools/bin", '"/opt/our tools/bin"'),
        ("/opt/100%/bin", "/opt/100%%/bin"),
        ("/opt/$HOME/bin", "/opt/$HOME/bin"),
    ],
)
def test_a_path_is_one_word_of_a_unit(path: str, word: str) -> None:
    assert _unit_word(path) == word


@pytest.mark.parametrize(
    ("listen", "more"),
    [
        ("127.0.0.1:9000", []),
        ("0.0.0.0:9000", []),
        ("192.168.1.5:9000", ["FreeBind=yes"]),
        ("[::1]:9000", ["BindIPv6Only=ipv6-only"]),
        ("[2001:db8::7]:9000", ["BindIPv6Only=ipv6-only", "FreeBind=yes"]),
    ],
)
def test_a_socket_unit_opens_what_the_daemon_would(listen: str, more: list[str]) -> None:
    files, _ = systemd(HERE.replace("127.0.0.1:9000", listen))
    unit = files["amplitude-intercom.socket"]
    assert re.findall(r"^(?:Listen|Bind|Free).*$", unit, re.MULTILINE) == [
        f"ListenStream={listen}",
        *more,
    ]


def test_a_container_has_a_second_for_its_spool_before_docker_kills_it() -> None:
    files, _ = container(HERE.replace("[http]", "drain_deadline_s = 60\n\n[admin]\n\n[http]"))
    settings = files["amplitude-intercom.toml"]
    assert f"drain_deadline_s = {CONTAINER_DRAIN_S:g}\n" in settings
    assert CONTAINER_DRAIN_S + LAST_HEADS_S + CLOSING_S <= DOCKER_STOP_S - 1.0
