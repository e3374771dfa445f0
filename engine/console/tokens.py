"""The tokens of the admin port: who has which, and when a file with one is read again."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.console.access import Credential
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin

READ_AGAIN_S: Final = 1.0
"""A token that is refused has the files read again, this often at most."""

READ_WAIT_S: Final = 0.5
"""A refusal waits so long for the files: their disk may hang."""


class TokenHolder(NamedTuple):
    """Whoever has a token. ``proof``: of the token, to see later whether it is still the same."""

    credential: Credential
    proof: bytes


class AdminTokens:
    """The tokens that are right now. Texts are compared by their digests, in constant time."""

    def __init__(self, admin: Admin, now_s: Callable[[], float] = loop_time_s) -> None:
        self._now_s = now_s
        # A digest of a weak token could be guessed; one with a key of this process tells nothing.
        self._key = secrets.token_bytes(32)
        self._read_again_at_s = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self.follow(admin)

    def follow(self, admin: Admin) -> None:
        """Take other tokens from now on."""
        named = (
            (Credential("admin token", may_change=True), admin.token),
            (Credential("read token", may_change=False), admin.read_token),
        )
        self._secrets = [(one, secret) for one, secret in named if secret is not None]
        self._holders = [
            TokenHolder(one, self._proof(secret.reveal())) for one, secret in self._secrets
        ]

    async def find(self, given: str) -> TokenHolder | None:
        """Return whoever has this token; None: nobody. May read files, in a thread."""
        found = self._match(given)
        if found is None and await self._read_again():
            found = self._match(given)
        return found

    def is_right(self, holder: TokenHolder) -> bool:
        """Return whether the holder's token is still a token, and for the same."""
        return holder in self._holders

    def _match(self, given: str) -> TokenHolder | None:
        proof = self._proof(given)
        found = [one for one in self._holders if hmac.compare_digest(one.proof, proof)]
        return found[0] if found else None

    def _proof(self, text: str) -> bytes:
        # A header can be any bytes: without the escape a wrong token would be a fault.
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._key).digest()

    # --- files that have changed ----------------------------------------------------------

    async def _read_again(self) -> bool:
        """Read the files again, unless that was a moment ago; return whether it was done."""
        if self._reading is None:
            now_s = self._now_s()
            if now_s < self._read_again_at_s + READ_AGAIN_S:
                return False
            self._read_again_at_s = now_s
            self._reading = asyncio.create_task(self._take_read(self._secrets))
        # Several that are refused at once wait for one reading; a client that leaves ends none.
        await asyncio.wait({self._reading}, timeout=READ_WAIT_S)
        return True

    async def _take_read(self, of: list[tuple[Credential, Secret]]) -> None:
        try:
            read = await asyncio.to_thread(lambda: [secret.reread() for _, secret in of])
            if of is self._secrets:  # else the settings have changed meanwhile
                self._holders = [
                    before if text is None else TokenHolder(before.credential, self._proof(text))
                    for before, text in zip(self._holders, read, strict=True)
                ]
        finally:
            self._reading = None
