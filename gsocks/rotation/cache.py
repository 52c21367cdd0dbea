"""On-disk cache (mode 0600) of a list URL's last response, shared by all worker processes.

The file is a line of JSON followed by the response body.  Its modification time is the time of the
last fetch.  Beside it is a lock file: the process that holds the lock, for as long as it lives, is
the one that fetches.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from gsocks.files import FileState, replace_secret, state_of
from gsocks.http.url import WebUrl

#: bytes of the first line
_MAX_HEAD = 65536


class CachedList(NamedTuple):
    """The content of the file."""

    raw: bytes
    #: validator fields of the response (RFC 9110 section 8.8)
    validators: Mapping[str, str]
    #: seconds since it was fetched
    age: float


class ListCache:
    """The file ``path`` for the responses of ``url``, of ``max_size`` bytes at most."""

    def __init__(self, path: Path, url: WebUrl, max_size: int) -> None:
        self._path = path
        # a cached response of another URL in the same file must not be used
        self._of = blake2b(repr((url, url.target, url.login)).encode(), digest_size=16).hexdigest()
        self._max_size = max_size
        self._lock: int | None = None

    def state(self) -> FileState:
        """The state of the file, which differs once a process has written or touched it."""
        return state_of(self._path)

    def read(self) -> CachedList | None:
        """The cached response; None if there is no usable one."""
        try:
            with self._path.open("rb") as file:
                fetched = os.fstat(file.fileno()).st_mtime
                head = json.loads(file.readline(_MAX_HEAD))
                raw = file.read(self._max_size + 1)
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(head, dict) or head.get("of") != self._of or len(raw) > self._max_size:
            return None
        validators = head.get("validators")
        texts = validators.items() if isinstance(validators, dict) else ()
        # a clock that was set back must not make it fresh for ever
        age = max(0.0, time.time() - fetched)
        return CachedList(raw, {str(name): str(value) for name, value in texts}, age)

    def write(self, raw: bytes, validators: Mapping[str, str]) -> None:
        """Replace the cached response by one that was fetched just now.  Raises OSError."""
        head = json.dumps({"of": self._of, "validators": validators}).encode()
        replace_secret(self._path, head + b"\n" + raw)

    def touch(self) -> None:
        """The cached response was validated just now.  Raises OSError."""
        os.utime(self._path)

    def lead(self) -> bool:
        """Take the lock if it is free; whether this process is the one that fetches.

        Raises OSError if no lock file can be created there.
        """
        if self._lock is not None:
            return True
        path = self._path.with_name(f"{self._path.name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._lock = descriptor
        return True

    def close(self) -> None:
        """Release the lock: another process may fetch."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
