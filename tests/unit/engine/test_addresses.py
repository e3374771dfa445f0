"""One spelling of an address, so that one token has one budget."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.addresses import normal_host, normal_url


@pytest.mark.parametrize(
    ("spelled", "normal"),
    [
        ("https://api.intercom.io", "https://api.intercom.io"),
        ("https://API.Intercom.IO/", "https://api.intercom.io"),
        ("HTTPS://api.intercom.io:443//", "https://api.intercom.io"),
        ("https://api.intercom.io.", "https://api.intercom.io"),
        ("http://my_proxy:80/Path/", "http://my_proxy/Path"),
        ("http://127.0.0.1:8720/", "http://127.0.0.1:8720"),
        ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("http://bücher.example", "http://xn--bcher-kva.example"),
    ],
)
def test_an_address_has_one_spelling(spelled: str, normal: str) -> None:
    assert normal_url(spelled) == normal
    assert normal_url(normal) == normal


@pytest.mark.parametrize(
    "wrong",
    [
        "https://api..intercom.io",
        "https://.intercom.io",
        f"https://{'a' * 64}.io",
        f"https://{'a.' * 127}io",
        f"https://{'ü' * 64}.io",
        "https://a:65536",
        "https://a:",
        "https://a:b",
        "https://[::1",
        "https://[::g]",
        "https://[fe80::1%25eth0]",
        "https://1.2.3",
        "https://a\x00b",
        "https://a/\x7f",
        "https://a b",
        "https://",
    ],
)
def test_an_address_that_nobody_can_be_asked_for_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        normal_url(wrong)
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "A_b.example", "0.0.0.0", "::", "10.0.0.1"])
def test_a_host_that_can_be_listened_on_is_taken(host: str) -> None:
    assert normal_host(host) == host.lower()
