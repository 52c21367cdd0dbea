"""``gsocks keygen``: make the key that both ends share."""

from __future__ import annotations

from pathlib import Path

from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.keyfile import create_key


def keygen(path: Path | None) -> int:
    """Print a new key, or write it to the file ``path``, which must not exist yet."""
    if path is None:
        print(Key.generate().text())
        return 0
    if path.exists():
        raise ConfigError(f"{path}: exists already, and may be in use")
    create_key(path)
    print(f"{path}: a new key; copy it to the other end over a safe channel")
    return 0
