"""Sessions of the dashboard: who has signed in, as a signed value in a cookie.

All workers have the same key, so that each knows the sessions that any of them has begun.  One
ends after hours, with the token that it was begun with, or when it is signed out of: those are
remembered, in every worker, until they would have ended.
"""

from __future__ import annotations

import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256

from gsocks.admin.token import Token, Tokens
from gsocks.lru import LruCache

#: seconds that a session lasts
LIFETIME = 12 * 3600

#: sessions that were signed out of and are remembered; beyond, the oldest could be used again until
#: it ends by itself
MAX_REVOKED = 10_000

#: bytes of a key
KEY_SIZE = 32

# the longest value is that of the longest name
_MAX_VALUE = 1024


class SignedIn:
    """The sessions of all workers that have ``key``.  ``clock``: seconds of the wall clock."""

    def __init__(self, tokens: Tokens, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._tokens = tokens
        self._key = key
        self._clock = clock
        self._revoked: LruCache[str, float] = LruCache(MAX_REVOKED)

    def __repr__(self) -> str:
        return f"<SignedIn, {len(self._revoked)} revoked>"

    def begin(self, token: Token) -> str:
        """The value of a new session's cookie."""
        name = urlsafe_b64encode(token.name.encode()).decode().rstrip("=")
        text = f"{name}.{int(self._clock()) + LIFETIME}.{secrets.token_urlsafe(12)}"
        return f"{text}.{self._signature(text, token)}"

    def check(self, value: str) -> Token | None:
        """The token with which the session was begun; None if it has ended, or never was."""
        parts = value.split(".")
        if len(value) > _MAX_VALUE or not value.isascii() or len(parts) != 4:
            return None
        name, ends, nonce, signature = parts
        token = self._tokens.named(_decoded(name))
        if token is None or not ends.isdigit() or len(ends) > 12:
            return None
        signed = self._signature(f"{name}.{ends}.{nonce}", token)
        if not hmac.compare_digest(signed, signature):
            return None
        if int(ends) <= self._clock() or nonce in self._revoked:
            return None
        return token

    def revoke(self, value: str) -> str | None:
        """End a session in this worker; returns what :meth:`revoke_nonce` takes in others."""
        if self.check(value) is None:
            return None
        nonce = value.split(".")[2]
        self.revoke_nonce(nonce)
        return nonce

    def revoke_nonce(self, nonce: str) -> None:
        """End a session that another worker was told to end."""
        now = self._clock()
        while (oldest := self._revoked.oldest()) is not None and oldest[1] <= now:
            self._revoked.discard(oldest[0])
        self._revoked[nonce[:64]] = now + LIFETIME

    def _signature(self, text: str, token: Token) -> str:
        # with what the token is, so that another one of the same name ends its sessions
        signed = hmac.new(self._key, token.digest + text.encode(), sha256).digest()
        return urlsafe_b64encode(signed).decode().rstrip("=")


def _decoded(name: str) -> str:
    try:
        return urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
    except ValueError:
        return ""
