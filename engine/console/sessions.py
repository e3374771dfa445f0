"""Browsers that are signed in, and how often signing in may be tried. A restart ends all.

Rules of a session
==================
- Its id is random and known to the browser alone: here is its hash, so that no dump of this
  process's memory signs in.
- It ends ``IDLE_S`` after its last request, ``LONGEST_S`` after its beginning, when its token is no
  token any more, and when somebody signs out.
- It is of one address; a request from another is not of it.
- There are ``MAX_SESSIONS``; the one unused for longest makes way.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.console.access import Credential
from amplitude_intercom.engine.console.tokens import TokenHolder

IDLE_S: Final = 12 * 3600.0
LONGEST_S: Final = 7 * 24 * 3600.0
MAX_SESSIONS: Final = 1_000

ATTEMPTS: Final = 5
ATTEMPTS_S: Final = 60.0
MAX_PEERS: Final = 10_000
"""Addresses whose attempts are remembered; beyond, the one that tried longest ago is forgotten."""

ID_BYTES: Final = 32
MAX_ID: Final = 64
"""Characters of an id; a longer one is none."""


class Session:
    """A browser that is signed in."""

    __slots__ = ("began_s", "holder", "peer", "used_s")

    def __init__(self, holder: TokenHolder, peer: str, now_s: float) -> None:
        self.holder = holder
        self.peer = peer
        self.began_s = self.used_s = now_s

    @property
    def credential(self) -> Credential:
        """Whoever it stands for."""
        of = self.holder.credential
        return Credential(f"session of {of.who}", of.may_change)

    def is_over(self, now_s: float) -> bool:
        """Whether its time has passed."""
        return now_s >= self.used_s + IDLE_S or now_s >= self.began_s + LONGEST_S


class Sessions:
    """All sessions of one admin port."""

    def __init__(
        self, is_right: Callable[[TokenHolder], bool], now_s: Callable[[], float] = loop_time_s
    ) -> None:
        """``is_right``: whether somebody's token is still one (``AdminTokens.is_right``)."""
        self._is_right = is_right
        self._now_s = now_s
        self._by_hash: OrderedDict[bytes, Session] = OrderedDict()
        """The least recently used first."""

    def __len__(self) -> int:
        return len(self._by_hash)

    def open(self, holder: TokenHolder, peer: str) -> str:
        """Begin a session; return its id, which is not kept."""
        self._forget()
        while len(self._by_hash) >= MAX_SESSIONS:
            self._by_hash.popitem(last=False)
        name = secrets.token_urlsafe(ID_BYTES)
        self._by_hash[_hash(name)] = Session(holder, peer, self._now_s())
        return name

    def find(self, name: str, peer: str) -> Session | None:
        """Return the session of an id, used from now on; None: there is none for this address."""
        session = self._by_hash.get(_hash(name)) if len(name) <= MAX_ID else None
        if session is None or session.peer != peer:
            return None
        if session.is_over(self._now_s()) or not self._is_right(session.holder):
            self.end(name)
            return None
        session.used_s = self._now_s()
        self._by_hash.move_to_end(_hash(name))
        return session

    def end(self, name: str) -> None:
        """End the session of an id, if there is one."""
        self._by_hash.pop(_hash(name), None)

    def end_wrong(self) -> None:
        """End the sessions of tokens that are none any more."""
        for key, session in list(self._by_hash.items()):
            if not self._is_right(session.holder):
                del self._by_hash[key]

    def _forget(self) -> None:
        now_s = self._now_s()
        for key, session in list(self._by_hash.items()):
            if session.is_over(now_s):
                del self._by_hash[key]


def _hash(name: str) -> bytes:
    # An id is 256 random bits: a plain hash cannot be guessed, and looking it up tells no timing.
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


class SignInAttempts:
    """The attempts to sign in of each address: ``ATTEMPTS`` in any ``ATTEMPTS_S``."""

    def __init__(self, now_s: Callable[[], float] = loop_time_s) -> None:
        self._now_s = now_s
        self._by_peer: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        """When the latest were; the peer that tried longest ago first."""

    def __len__(self) -> int:
        return len(self._by_peer)

    def wait_s(self, peer: str) -> float:
        """Note an attempt; return 0, or the seconds until the next one is allowed."""
        now_s, network = self._now_s(), _network(peer)
        tried = self._by_peer.get(network, ())
        if len(tried) == ATTEMPTS and now_s < tried[0] + ATTEMPTS_S:
            return tried[0] + ATTEMPTS_S - now_s
        self._by_peer[network] = (*tried, now_s)[-ATTEMPTS:]
        self._by_peer.move_to_end(network)
        while len(self._by_peer) > MAX_PEERS or self._first_is_old(now_s):
            self._by_peer.popitem(last=False)
        return 0.0

    def _first_is_old(self, now_s: float) -> bool:
        return now_s >= next(iter(self._by_peer.values()))[-1] + ATTEMPTS_S


def _network(peer: str) -> str:
    """Return whoever shares one allowance: an IPv6 client has 2**64 addresses."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer[:MAX_ID]
    if address.version == 4:
        return peer
    return str(ipaddress.ip_network((int(address), 64), strict=False))
