"""The other workers that serve the same addresses, each queried at a Unix socket of its own.

Every worker has its own connections and counters.  The worker to which the kernel gives a request
of the admin API queries the others, and answers for all.
"""

from __future__ import annotations

import json
import logging
import socket as std_socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from itertools import chain
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

#: bytes of what :func:`in_parts` makes; a first line may have 8 KiB
MAX_QUERY = 6000


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
        figures: Collection[str] | None = None,
    ) -> list[Json]:
        """Those of all workers that answer in time; see :func:`gsocks.admin.snapshot.take`."""
        query = {"which": which}
        if most is not None:
            query["most"] = str(most)
        if not domains:
            query["domains"] = "0"
        if figures is not None:
            query["figures"] = ",".join(figures)
        query.update((name, text) for name, text in wanted._asdict().items() if text)
        responses = self.ask("GET", f"/own/snapshot?{urlencode(query)}", read=from_lines)
        return [response.body for response in responses if response.status == HTTPStatus.OK]

    def exits_named(self, names: Iterable[tuple[str, str]]) -> list[list[Json]]:
        """Those of all workers that answer in time; see :func:`gsocks.admin.snapshot.exits_named`.

        A worker has several lists if there are many names.
        """
        wanted = (f"{section}/{name}" for section, name in names)
        found = (self.ask("GET", f"/own/exits?{part}") for part in in_parts("name", wanted))
        responses = chain.from_iterable(found)
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


def in_parts(name: str, values: Iterable[str]) -> Iterator[str]:
    """Queries with these values of a parameter, each of which the first line of a request holds."""
    part: list[str] = []
    size = 0
    for value in values:
        pair = urlencode({name: value})
        if part and size + len(pair) >= MAX_QUERY:
            yield "&".join(part)
            part, size = [], 0
        part.append(pair)
        size += len(pair) + 1
    if part:
        yield "&".join(part)


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
