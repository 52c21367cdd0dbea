"""The methods of Shadowsocks by their names, and the passwords that each takes.

Nothing here needs the packages of the extra ``shadowsocks``: a config is read without them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import importlib.util
from typing import NamedTuple

from gsocks.errors import ConfigError

#: bytes of a password
MAX_PASSWORD = 1024
#: keys behind one another in a client's password of 2022: those of relays, the server's, its own
MAX_KEYS = 8


class Method(NamedTuple):
    """A method: a cipher, and the edition of the protocol that it belongs to."""

    name: str
    #: ``aes-gcm`` or ``chacha20-poly1305``
    cipher: str
    #: bytes of a key, and of a salt
    key_size: int
    #: the bytes of a chunk at most
    max_chunk: int
    #: whether it is of the edition of 2022
    is_2022: bool

    @property
    def has_users(self) -> bool:
        """Whether a client can say which user it is by an identity header (SIP023)."""
        return self.is_2022 and self.cipher == "aes-gcm"


METHODS = {
    method.name: method
    for method in (
        Method("2022-blake3-aes-256-gcm", "aes-gcm", 32, 0xFFFF, True),
        Method("2022-blake3-aes-128-gcm", "aes-gcm", 16, 0xFFFF, True),
        Method("2022-blake3-chacha20-poly1305", "chacha20-poly1305", 32, 0xFFFF, True),
        Method("chacha20-ietf-poly1305", "chacha20-poly1305", 32, 0x3FFF, False),
        Method("aes-256-gcm", "aes-gcm", 32, 0x3FFF, False),
        Method("aes-128-gcm", "aes-gcm", 16, 0x3FFF, False),
    )
}

#: what some programs call them
_ALIASES = {
    "chacha20-poly1305": "chacha20-ietf-poly1305",
    "aead_chacha20_poly1305": "chacha20-ietf-poly1305",
    "aead_aes_256_gcm": "aes-256-gcm",
    "aead_aes_128_gcm": "aes-128-gcm",
}


def method_named(name: str) -> Method:
    """The method of that name.  Raises ConfigError, which does not repeat it."""
    name = name.lower()
    found = METHODS.get(_ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"not a method of Shadowsocks that is supported ({known_methods()})")
    return found


def known_methods() -> str:
    """The names, for a message."""
    return f"known: {', '.join(METHODS)}"


def check_packages(method: Method) -> None:
    """Raise ConfigError if a package that ``method`` needs is not installed; imports none."""
    if method.is_2022 and not _is_installed("blake3"):
        raise missing("blake3", method)
    if (method.is_2022 or method.cipher == "aes-gcm") and not _is_installed("cryptography"):
        raise missing("cryptography", method)


def missing(package: str, method: Method) -> ConfigError:
    """The error for a package that is not installed."""
    return ConfigError(
        f"{method.name} needs the package {package} (pip install 'gsocks[shadowsocks]')"
    )


@functools.cache  # a list may have 100,000 exits
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def keys_of(method: Method, password: str) -> tuple[bytes, ...]:
    """The keys that ``password`` stands for, of which the last one is the client's own.

    In the edition of 2022 a password is a key in base64, or several with colons between them
    (SIP023); before, any text, from which one key is made.  Raises ConfigError, which does not
    repeat it.
    """
    if not password:
        raise ConfigError("the password is empty")
    if len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD:
        raise ConfigError(f"the password is longer than {MAX_PASSWORD} bytes")
    if not method.is_2022:
        return (key_from_password(password, method.key_size),)
    parts = password.split(":")
    if len(parts) > MAX_KEYS:
        raise ConfigError(f"more than {MAX_KEYS} keys behind one another")
    if len(parts) > 1 and not method.has_users:
        raise ConfigError(f"{method.name} knows no users, so that it takes one key only")
    return tuple(_preshared_key(part, method) for part in parts)


def _preshared_key(text: str, method: Method) -> bytes:
    """A key of SIP022 section 2.1, in either alphabet of base64, with or without padding."""
    bare = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    expected = f"openssl rand -base64 {method.key_size} makes one"
    try:
        raw = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"the key of {method.name} is not base64 ({expected})") from None
    if len(raw) != method.key_size:
        raise ConfigError(
            f"a key of {method.name} has {method.key_size} bytes, this one has {len(raw)}"
            f" ({expected})"
        )
    return raw


def key_from_password(password: str, size: int) -> bytes:
    """OpenSSL's EVP_BytesToKey with MD5, no salt and one round, as SIP004 has it."""
    secret = password.encode("utf-8", "surrogatepass")
    made = block = b""
    while len(made) < size:
        block = hashlib.md5(block + secret, usedforsecurity=False).digest()
        made += block
    return made[:size]
