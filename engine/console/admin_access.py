"""Access to one admin port as it is now: settings, tokens, sessions and the audit.

The settings can be replaced while the port is open; ``listen`` alone needs a restart.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from amplitude_intercom.engine.addresses import host_and_port, is_loopback
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.console.access import AccessRules
from amplitude_intercom.engine.console.audit import Audit
from amplitude_intercom.engine.console.sessions import Sessions, SignInAttempts
from amplitude_intercom.engine.console.tokens import AdminTokens
from amplitude_intercom.engine.settings import Admin

_log = structlog.get_logger(__name__)


class AdminAccess:
    """See the module's docstring. ``address``: where the port listens, once it does."""

    def __init__(
        self, settings: Admin, audit: Audit, now_s: Callable[[], float] = loop_time_s
    ) -> None:
        self.settings = settings
        self.rules = AccessRules.of(settings)
        self.tokens = AdminTokens(settings, now_s)
        self.sessions = Sessions(self.tokens.is_right, now_s)
        self.attempts = SignInAttempts(now_s)
        self.audit = audit
        self.address = settings.listen

    def follow(self, settings: Admin | None) -> None:
        """Decide by other settings from now on. Sessions of tokens that are gone end.

        No change opens a port beyond loopback to everybody: it keeps its tokens until a restart.
        None, a settings file without ``[admin]``, changes nothing before a restart.
        """
        if settings is None:
            return
        before = self.settings
        after = msgspec.structs.replace(settings, listen=before.listen)
        if after.token is None and not is_loopback(before.listen):
            _log.warning("the admin port keeps its tokens until a restart", listen=before.listen)
            after = msgspec.structs.replace(after, token=before.token, read_token=before.read_token)
        self.settings = after
        self.rules = AccessRules.of(after)
        self.tokens.follow(after)
        self.sessions.end_wrong()

    def cookie_name(self, scheme: str) -> str:
        """Return the name of the session's cookie.

        It has the port in it: a browser sends a cookie to every port of its host, so two daemons on
        one machine would sign each other's people out.
        """
        _, port = host_and_port(self.address)
        return f"{'__Host-' if scheme == 'https' else ''}console-{port}"
