"""The bearer token of the admin API: one line in a file that only its owner may read."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from gsocks.errors import ConfigError
from gsocks.files import create_secret, read_secret

log = logging.getLogger("gsocks.admin")

#: characters; a shorter one could be guessed
MIN_SIZE = 16
#: a longer file is another kind of file
MAX_SIZE = 512


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
