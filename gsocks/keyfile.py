"""The file that a key lives in: one line of base64, for its owner's eyes only."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from gsocks.crypto import Key
from gsocks.errors import ConfigError

log = logging.getLogger("gsocks.key")

#: bytes; a key's line has 44 at the most, and a file much longer is another file
_MOST = 1024


def read_key(path: Path) -> Key:
    """The key in ``path``.  Raises ConfigError, naming the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)} (gsocks keygen makes a key)") from None
    if mode & 0o077:
        log.warning("%s can be read by others than its owner (chmod 600 mends it)", path)
    if len(content) > _MOST or not content.isascii():
        raise ConfigError(f"{path}: not a key file (expected one line of base64)")
    try:
        return Key.parse(content.decode("ascii"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def create_key(path: Path) -> Key:
    """Make a new key and keep it in ``path``, which must not exist yet; mode 0600.

    Raises ConfigError.  If another process was faster, its key is the one.
    """
    key = Key.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_key(path)
    except OSError as error:
        raise ConfigError(f"{path}: a key can't be kept there: {_reason(error)}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(key.text() + "\n")
    return key


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
