"""The bearer tokens of the admin: each is one line in a file that only its owner may read.

A config may have the SHA-256 of one instead.  A token is random, and no password: so that no slow
hash is needed, which would make each request slow.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import NamedTuple

from gsocks.admin.routes import Role
from gsocks.errors import ConfigError
from gsocks.files import create_secret, read_secret

log = logging.getLogger("gsocks.admin")

#: characters; a shorter one could be guessed
MIN_SIZE = 16
#: a longer file is another kind of file
MAX_SIZE = 512

#: the name of the token in ``token_file``, whose holder is an operator
MAIN = "admin"


class Token(NamedTuple):
    """A token, of which the SHA-256 is kept."""

    name: str
    role: Role
    digest: bytes

    def __repr__(self) -> str:
        return f"<Token {self.name}, {self.role}>"

    @classmethod
    def of(cls, name: str, role: Role, text: str) -> Token:
        """The token with that text."""
        return cls(name, role, sha256(text.encode()).digest())


class Tokens:
    """All tokens."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = {each.name: each for each in tokens}

    def __repr__(self) -> str:
        return f"<Tokens {', '.join(self._tokens)}>"

    def find(self, text: str) -> Token | None:
        """The token with that text, in the same time whatever it is; None if there is none."""
        digest, found = sha256(text.encode("utf-8", "surrogateescape")).digest(), None
        for each in self._tokens.values():
            if compare_digest(each.digest, digest):
                found = each
        return found

    def named(self, name: str) -> Token | None:
        """The token of that name."""
        return self._tokens.get(name)


def read_or_make_token(path: Path) -> str:
    """The token in ``path``, which is created with mode 0600 if it does not exist.

    Raises ConfigError, whose message never contains the file's content.
    """
    token = secrets.token_urlsafe(32)
    try:
        created = create_secret(path, token + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: a token can't be written there: {error.strerror}") from None
    if not created:
        return read_token(path)
    log.info("created a new token: %s", path)
    return token


def read_token(path: Path) -> str:
    """The token in ``path``.  Raises ConfigError as :func:`read_or_make_token` does."""
    try:
        content = read_secret(path, MAX_SIZE + 1, log)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    token = content.strip()
    if not MIN_SIZE <= len(token) <= MAX_SIZE or any(not 0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(
            f"{path}: not a token (expected {MIN_SIZE} to {MAX_SIZE} printable characters)"
        )
    return token.decode("ascii")
