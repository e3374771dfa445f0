"""Access to the admin port: what is known of a request, and the settings → allowed, or a refusal.

Rules, in this order
====================
1. Health and the help of problems are for everybody.
2. ``Host`` is a name that is served: else a page of another name, which resolves to this machine
   (DNS rebinding), would be of the port's own origin.
3. A browser says where a request comes from. A change needs ``Sec-Fetch-Site: same-origin``; so
   does a read of the API, or ``none``, which is a person's own. ``same-site`` is not enough: ports
   share a site. Where a browser does not send it (it is old, or the address is plain HTTP beyond
   loopback), ``Origin`` is the port's own.
4. With a token set, somebody has to be known: by ``Authorization: Bearer``, or by a session.
   Without one the port listens on loopback, and whoever reaches it may change.
5. A change that says neither ``Sec-Fetch-Site`` nor ``Origin`` comes from a program. With a token
   set it has to bring the token itself: a cookie comes along with whatever a page makes a browser
   send.
6. A reader changes nothing.
7. A ``POST`` is JSON, unless a browser has said that it comes from the port's own page (a form).

A program without a token (``curl`` beside a port without one) passes rules 3 to 5 with neither
header. No page of another origin can make its browser send that request: for each ``POST`` with
JSON, and each ``PUT``, ``PATCH`` or ``DELETE``, the browser first asks by ``OPTIONS`` whether the
page may, is never told that it may, and would send ``Origin`` with it anyway. A form that comes
without either header cannot be JSON.

Pure: whoever has the token or the session is found out before.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

import msgspec

from amplitude_intercom.engine.addresses import host_and_port, normal_host
from amplitude_intercom.engine.console.problems import HELP, Problem, ProblemType
from amplitude_intercom.engine.settings import Admin

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
API_ROOT: Final = "/api/v1"
"""The paths of the API begin so."""

SESSION_PATH: Final = f"{API_ROOT}/session"

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
_API = ("/api/", "/metrics")
_READING_POST = re.compile(rf"{API_ROOT}/syncs/[^/]+/preview")
"""Requests that change nothing, and are a POST because their question is long."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[^\s:/?#@\[\]\\]{1,255})(?::[0-9]{1,5})?")


class Credential(NamedTuple):
    """Whoever sends a request. ``who``: for the audit; the label of the token, never the token."""

    who: str
    may_change: bool


_NOBODY: Final = Credential("nobody", may_change=False)


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request.

    ``path``: decoded but for ``%2F``, as it is routed. ``scheme``: of the client's connection.
    ``origin``, ``fetch_site``: None where the header is absent. ``media_type``: of the body.
    ``bearer``, ``session``: whoever they stand for; None where they are absent or wrong.
    """

    method: str
    path: str
    host: str
    scheme: str = "http"
    origin: str | None = None
    fetch_site: str | None = None
    media_type: str = ""
    bearer_given: bool = False
    bearer: Credential | None = None
    session: Credential | None = None

    @property
    def is_safe(self) -> bool:
        """Whether its method changes nothing."""
        return self.method in SAFE_METHODS

    @property
    def changes(self) -> bool:
        """Whether it may change something that lasts."""
        if self.is_safe or self.path == SESSION_PATH:
            return False
        return not (self.method == "POST" and _READING_POST.fullmatch(self.path))

    @property
    def is_of_the_api(self) -> bool:
        """Whether it asks for data, not for a page."""
        return self.path.startswith(_API)

    @property
    def is_of_own_page(self) -> bool:
        """Whether a browser says that a page of this port sent it."""
        if self.fetch_site is not None:
            return self.fetch_site == "same-origin"
        return (self.origin or "").lower() == f"{self.scheme}://{self.host}".lower()


class AccessRules(msgspec.Struct, frozen=True):
    """The settings that decide. ``listen``: the address that is listened on."""

    listen: str
    hosts: frozenset[str]
    has_token: bool

    @classmethod
    def of(cls, admin: Admin) -> AccessRules:
        """Return those of checked settings."""
        hosts = frozenset(map(normal_host, admin.hosts))
        return cls(admin.listen, hosts, admin.token is not None)

    def serves(self, host: str) -> bool:
        """Return whether a ``Host`` header names this port."""
        match = _HOST.fullmatch(host)
        try:
            name = normal_host(match[1].strip("[]")) if match else ""
        except ValueError:
            return False
        listens_at = _normal(host_and_port(self.listen)[0])
        # Rebinding needs a name: an address in `Host` is one that the client itself has chosen.
        own = _is_address(name) if _is_everywhere(listens_at) else name == listens_at
        return bool(name) and (own or name in self.hosts or _is_loopback(name))


def decide(facts: RequestFacts, rules: AccessRules) -> Credential | Problem:
    """Return who sends a request and what they may do, or why it is refused."""
    if facts.path in OPEN_PATHS or (facts.is_safe and facts.path.startswith(HELP)):
        return _NOBODY
    if not rules.serves(facts.host):
        return Problem(
            ProblemType.OTHER_HOST, "this host name is not served; `admin.hosts` can name it"
        )
    if problem := _origin_problem(facts):
        return problem
    if facts.path == SESSION_PATH and facts.method == "POST":
        who: Credential | None = _NOBODY
    else:
        who = _credential(facts, rules)
    if who is None:
        return _unknown()
    return _change_problem(facts, rules, who) or who


def _origin_problem(facts: RequestFacts) -> Problem | None:
    """Return the refusal of a request that a page of elsewhere sent."""
    if facts.fetch_site is None:
        if facts.origin is None or facts.is_of_own_page:
            return None
        advice = (
            "" if facts.scheme == "https" else "; behind a proxy with TLS set `admin.scheme_header`"
        )
        return Problem(ProblemType.OTHER_ORIGIN, f"not for pages of another origin{advice}")
    taken = {"same-origin"} if not facts.is_safe else {"same-origin", "none"}
    if facts.fetch_site in taken or (facts.is_safe and not facts.is_of_the_api):
        return None
    return Problem(ProblemType.OTHER_ORIGIN, "not for pages of another origin")


def _credential(facts: RequestFacts, rules: AccessRules) -> Credential | None:
    if not rules.has_token:
        return Credential("loopback", may_change=True)
    # A wrong token is refused, also beside a session: its sender believes it to be right.
    return facts.bearer if facts.bearer_given else facts.session


def _unknown() -> Problem:
    return Problem(
        ProblemType.UNAUTHORIZED,
        "admin token missing or wrong",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _change_problem(facts: RequestFacts, rules: AccessRules, who: Credential) -> Problem | None:
    """Return the refusal of a change that its sender may not make, or not in this form."""
    if facts.is_safe:
        return None
    says_nothing = facts.fetch_site is None and facts.origin is None
    if says_nothing and rules.has_token and facts.bearer is None:
        return Problem(
            ProblemType.OTHER_ORIGIN,
            "neither Sec-Fetch-Site nor Origin: a program sends Authorization: Bearer TOKEN",
        )
    if facts.changes and not who.may_change:
        return Problem(ProblemType.READ_ONLY)
    is_form_of_own = facts.is_of_own_page and not facts.is_of_the_api
    if facts.method == "POST" and facts.media_type != "application/json" and not is_form_of_own:
        return Problem(ProblemType.WRONG_MEDIA_TYPE, "send Content-Type: application/json")
    return None


# --- names --------------------------------------------------------------------------------


def _normal(host: str) -> str:
    try:
        return normal_host(host)
    except ValueError:  # an address with a scope, which no `Host` header can have
        return ""


def _is_address(name: str) -> bool:
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_everywhere(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False
