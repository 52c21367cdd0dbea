"""The file that a key lives in: one line of base64, mode 0600."""

from __future__ import annotations

import logging
from pathlib import Path

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.files import as_utf8, create_secret, read_secret

log = logging.getLogger("gsocks.key")

#: bytes; a key's line has 44 at most, and a file much longer is another file
_MAX_SIZE = 1024
#: the same of other secrets
_MAX_LINE = 4096


def read_key(path: Path) -> Key:
    """The key in ``path``.  Raises ConfigError, naming the file and what is wrong with it."""
    try:
        raw = read_secret(path, _MAX_SIZE + 1, log)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {_reason(error)} (gsocks keygen makes a key)") from None
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    try:
        text = as_utf8(raw).decode("ascii") if len(raw) <= _MAX_SIZE else None
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise ConfigError(f"{path}: not a key file (expected one line of base64)")
    try:
        return Key.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def create_key(path: Path) -> Key:
    """Make a new key and keep it in ``path``, which must not exist yet; mode 0600.

    Raises ConfigError.  If another process was faster, its key is the one.
    """
    key = Key.generate()
    try:
        created = create_secret(path, key.text() + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: a key can't be kept there: {_reason(error)}") from None
    return key if created else read_key(path)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def read_line(path: Path) -> str:
    """The only line of ``path``, a secret of any kind.  Raises ConfigError, without that line."""
    try:
        raw = as_utf8(read_secret(path, _MAX_LINE + 1, log))
        text = raw.decode("utf-8").strip("\r\n")
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    if not text or len(raw) > _MAX_LINE or not text.isprintable():
        raise ConfigError(f"{path}: not one line of text")
    return text
