"""What a URL has said last, kept in a file for its owner's eyes; and which process fetches it.

The file is a line of JSON, and behind it what the URL said.  It was fetched when the file was
last written or touched.  Beside it is a lock, which one of the processes that share the file
holds for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from gsocks.http.url import WebUrl

#: what tells one state of a file from another; None is a file that can't be looked at
State = tuple[int, ...] | None

#: bytes; the first line
_LONGEST_HEAD = 65536


class Kept(NamedTuple):
    """What stands in the file."""

    raw: bytes
    #: what the server calls it, as fields of its answer (RFC 9110 section 8.8)
    validators: Mapping[str, str]
    #: seconds since it was fetched
    age: float


class Keep:
    """The file ``path``, for what ``url`` says: at most ``largest`` bytes."""

    def __init__(self, path: Path, url: WebUrl, largest: int) -> None:
        self._path = path
        # another URL's list in the same file must not be taken for this one's
        self._of = blake2b(repr((url, url.target, url.login)).encode(), digest_size=16).hexdigest()
        self._largest = largest
        self._lock: int | None = None

    def state(self) -> State:
        """Another one as soon as another process has written or touched the file."""
        return state_of(self._path)

    def read(self) -> Kept | None:
        """What is kept; None if there is nothing that could be used."""
        try:
            with self._path.open("rb") as file:
                fetched = os.fstat(file.fileno()).st_mtime
                head = json.loads(file.readline(_LONGEST_HEAD))
                raw = file.read(self._largest + 1)
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(head, dict) or head.get("of") != self._of or len(raw) > self._largest:
            return None
        validators = head.get("validators")
        texts = validators.items() if isinstance(validators, dict) else ()
        # a clock that was set back must not keep it from ever getting old
        age = max(0.0, time.time() - fetched)
        return Kept(raw, {str(name): str(value) for name, value in texts}, age)

    def write(self, raw: bytes, validators: Mapping[str, str]) -> None:
        """Keep what was fetched just now, in place of what was there.  Raises OSError."""
        descriptor, name = tempfile.mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps({"of": self._of, "validators": validators}).encode() + b"\n")
                file.write(raw)
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def touch(self) -> None:
        """What was fetched just now is what is there.  Raises OSError."""
        os.utime(self._path)

    def lead(self) -> bool:
        """Whether this process is the one that fetches, from now on.

        Raises OSError if nobody can know, because no lock can be made there.
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
        """Let another process fetch."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def state_of(path: Path) -> State:
    """The state of the file ``path``."""
    try:
        return state(os.stat(path))
    except OSError:
        return None


def state(found: os.stat_result) -> State:
    """The state that the kernel tells of."""
    # the inode and ctime too: a file moved into its place may be as old and as long
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
