"""The token that the admin's requests show: one line in a file, for its owner's eyes only."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from gsocks.errors import ConfigError

log = logging.getLogger("gsocks.admin")

#: characters; fewer could be tried out
SHORTEST = 16
#: a file that is longer is another file
LONGEST = 512


def read_or_make_token(path: Path) -> str:
    """The token in ``path``, which is made with mode 0600 if it is not there.

    Raises ConfigError, which never repeats what the file holds.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"{path}: a token can't be kept there: {error.strerror}") from None
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    log.info("made a new token: %s", path)
    return token


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        log.warning("%s can be read by others than its owner (chmod 600 mends it)", path)
    token = content.strip()
    if not SHORTEST <= len(token) <= LONGEST or any(not 0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(
            f"{path}: not a token (expected {SHORTEST} to {LONGEST} printable characters in a line)"
        )
    return token.decode("ascii")
