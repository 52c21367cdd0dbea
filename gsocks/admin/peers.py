"""The other processes that serve the same doors, each asked at a Unix socket of its own.

Every worker has its own connections, and counts for itself.  Whichever of them the kernel gives
an admin's connection to, it asks the others and tells of all.
"""

from __future__ import annotations

import json
import logging
import socket as std_socket
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from gevent.socket import socket

log = logging.getLogger("gsocks.admin")

#: seconds in which another worker has to answer; one that is just starting again is left out
PATIENCE = 2.0


class Told(NamedTuple):
    """Another worker's answer."""

    status: int
    said: Any


class Crew:
    """The others, by the paths of their sockets.  Nobody else may open these: no token is asked."""

    def __init__(self, others: Sequence[Path] = ()) -> None:
        self._others = others

    def ask(self, method: str, target: str, body: bytes = b"") -> list[Told]:
        """What those answer that are there."""
        asked = [gevent.spawn(_ask, path, method, target, body) for path in self._others]
        gevent.joinall(asked)
        return [each.value for each in asked if each.value is not None]


def _ask(path: Path, method: str, target: str, body: bytes) -> Told | None:
    connection = _AtPath(path)
    try:
        with gevent.Timeout(PATIENCE, TimeoutError()):
            connection.request(method, target, body)
            answer = connection.getresponse()
            return Told(answer.status, json.loads(answer.read()))
    except (OSError, HTTPException, ValueError) as error:
        log.debug("a worker does not answer: %s", error)
        return None
    finally:
        connection.close()


class _AtPath(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        sock = socket(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
        self.sock = sock
        sock.connect(str(self._path))
