"""The other workers that serve the same addresses, each queried at a Unix socket of its own.

Every worker has its own connections and counters.  The worker to which the kernel gives a request
of the admin API queries the others, and answers for all.
"""

from __future__ import annotations

import json
import logging
import socket as std_socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import gevent
from gevent.socket import socket

from gsocks.admin.snapshot import EVERY_EXIT, Json, WantedExits, from_lines

log = logging.getLogger("gsocks.admin")

#: seconds in which another worker has to answer, for 100,000 exits too; one that is just restarting
#: is left out
REQUEST_TIMEOUT = 5.0


class PeerResponse(NamedTuple):
    """Another worker's response."""

    status: int
    #: its JSON, or what was made of it
    body: Any


class Peers:
    """The other workers, by the paths of their sockets.

    No token is needed there: the folder of the sockets has mode 0700.
    """

    def __init__(self, others: Sequence[Path] = ()) -> None:
        self._others = others

    def snapshots(
        self,
        which: str,
        most: int | None = None,
        wanted: WantedExits = EVERY_EXIT,
        *,
        domains: bool = True,
    ) -> list[Json]:
        """Those of all workers that answer in time; see :func:`gsocks.admin.snapshot.take`."""
        query = {"which": which}
        if most is not None:
            query["most"] = str(most)
        if not domains:
            query["domains"] = "0"
        query.update((name, text) for name, text in wanted._asdict().items() if text)
        responses = self.ask("GET", f"/own/snapshot?{urlencode(query)}", read=from_lines)
        return [response.body for response in responses if response.status == HTTPStatus.OK]

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        read: Callable[[bytes], Any] = json.loads,
    ) -> list[PeerResponse]:
        """The responses of all workers that answer in time, and whose body is for ``read``."""
        requests = [gevent.spawn(_ask, path, method, target, body, read) for path in self._others]
        gevent.joinall(requests)
        return [each.value for each in requests if each.value is not None]


def _ask(
    path: Path, method: str, target: str, body: bytes, read: Callable[[bytes], Any]
) -> PeerResponse | None:
    connection = _AtPath(path)
    try:
        with gevent.Timeout(REQUEST_TIMEOUT, TimeoutError()):
            connection.request(method, target, body)
            response = connection.getresponse()
            return PeerResponse(response.status, read(response.read()))
    except (OSError, HTTPException, ValueError) as error:
        log.debug("a worker does not respond: %s", error)
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
