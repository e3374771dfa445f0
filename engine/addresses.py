"""Hosts, ports and URLs: whether they can be asked for, and their one spelling."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

MAX_PORT: Final = 65_535
MAX_HOST: Final = 253
"""Characters of a host's name (RFC 1035, without the length octets)."""


@lru_cache(maxsize=2_048)
def normal_url(url: str) -> str:
    """Return an address in its one spelling: lower case, no default port, no slash at the end.

    Raises:
        ValueError: it has no host that can be asked for; the message does not quote it.
    """
    if not url.isprintable():
        raise ValueError("Expected an address without control characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"Expected `http://host:port`, with a port up to {MAX_PORT}") from None
    if parts.netloc.endswith(":"):
        raise ValueError("Expected a port behind the colon, or no colon")
    host = normal_host(host)
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    shown += f":{port}" if port not in (None, default) else ""
    return f"{parts.scheme}://{shown}{parts.path.rstrip('/')}"


_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def normal_host(host: str) -> str:
    """Return a host's name in lower case and ASCII, or its address in its shortest spelling.

    Raises:
        ValueError: no resolver can be asked for it.
    """
    if ":" in host or host.replace(".", "").isdecimal():
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError("Expected an IP address or the name of a host") from None
        if getattr(address, "scope_id", None):
            raise ValueError("Expected an IPv6 address without a scope")
        return str(address)
    try:
        name = host.removesuffix(".").encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        name = ""
    name = name.removesuffix(".").lower()
    if len(name) > MAX_HOST or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(
            "Expected the name of a host: labels of up to 63 letters, digits, `-` and `_`, joined "
            "by single dots"
        )
    return name


def host_and_port(address: str) -> tuple[str, int]:
    """Split ``host:port``; brackets around an IPv6 host go."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach the address."""
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
