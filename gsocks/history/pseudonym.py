"""Pseudonyms of hosts, for what is kept or sent without their names."""

from __future__ import annotations

import hashlib

from gsocks.history.requests import host_of

#: bytes of a key
KEY_SIZE = 32

#: hexadecimal digits
_DIGITS = 16


def pseudonym(dest: str, key: bytes) -> str:
    """``HOST:PORT`` with another name, the same for the same host while the key is."""
    if not dest:
        return ""
    host, port = host_of(dest), dest.rpartition(":")[2]
    digest = hashlib.blake2b(host.encode("utf-8", "surrogateescape"), key=key).hexdigest()
    return f"h-{digest[:_DIGITS]}:{port}"
