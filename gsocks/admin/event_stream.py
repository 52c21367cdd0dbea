"""What happens, as server-sent events: once a second for all clients together.

The state is taken once for all of them, and only while there is one.  Each client has a greenlet
that writes; one that reads too slowly is behind by a few seconds at most, since what comes
meanwhile is not queued, and is disconnected when a write has taken too long (admin/server.py).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

import gevent
from gevent.event import Event

from gsocks.admin.problems import ApiError
from gsocks.admin.snapshot import Json

#: clients at a time
MAX_STREAMS = 32

#: seconds between two events of a kind
INTERVAL = 1.0

#: the share of the time that taking the state may take
_SHARE = 0.1

#: seconds after which a stream ends, so that the client asks again
MAX_SECONDS = 3600.0

#: changes that a client may be behind
_MAX_CHANGES = 1000


class News(NamedTuple):
    """What one client is told."""

    #: of ``status``, ``changes``, ``requests``
    topics: Sequence[str]
    #: rows of the request log behind that number, the latest first
    requests: Callable[[int], list[Json]] | None
    #: whether the client may still see it
    is_valid: Callable[[], bool]


class EventStreams:
    """All streams of this process.

    ``status``: the state now; ``changes``: what has changed since a time of the wall clock.
    """

    def __init__(self, status: Callable[[], Json], changes: Callable[[float], list[Json]]) -> None:
        self._status = status
        self._changes = changes
        self._streams: set[EventStream] = set()
        self._taking: gevent.Greenlet[[], None] | None = None
        #: counts the times that the state was taken
        self.number = 0
        self.latest: Json = {}
        #: with numbers that count up
        self.changed: deque[tuple[int, Json]] = deque(maxlen=_MAX_CHANGES)
        self._change_number = 0
        self.ticked = Event()
        self._seen = 0.0

    @property
    def change_number(self) -> int:
        """That of the latest change."""
        return self._change_number

    def open(self, news: News) -> EventStream:
        """A stream for one more client.  Raises ApiError."""
        if len(self._streams) >= MAX_STREAMS:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MAX_STREAMS} clients follow the events already",
                fields=[("Retry-After", "10")],
            )
        stream = EventStream(self, news)
        self._streams.add(stream)
        if self._taking is None:
            self._seen = time.time()
            self._taking = gevent.spawn(self._take)
        return stream

    def left(self, stream: EventStream) -> None:
        """A client is gone."""
        self._streams.discard(stream)
        if not self._streams and self._taking is not None:
            self._taking.kill(block=False)
            self._taking = None
            self.changed.clear()

    def close(self) -> None:
        """End all of them."""
        for stream in list(self._streams):
            stream.close()

    def _take(self) -> None:
        while True:
            began = time.monotonic()
            self.latest = {"time": time.time(), **self._status()}
            for each in self._changes(self._seen):
                self._seen = max(self._seen, each["time"])
                self._change_number += 1
                self.changed.append((self._change_number, each))
            self.number += 1
            self.ticked.set()
            self.ticked.clear()
            took = time.monotonic() - began
            gevent.sleep(max(INTERVAL - took, took / _SHARE, 0.05))


class EventStream:
    """The events of one client, as an iterable of a WSGI response."""

    def __init__(self, streams: EventStreams, news: News) -> None:
        self._streams = streams
        self._news = news
        self._number = 0
        self._change = streams.change_number
        self._request: int | None = None
        self._ends = time.monotonic() + MAX_SECONDS
        self._closed = False
        self._begun = False

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> bytes:
        """The next events, as soon as there are some."""
        if not self._begun:  # which tells the client that it is served
            self._begun = True
            return b"retry: 2000\n\n"
        while not self._closed:
            if self._number == self._streams.number or not self._number:
                self._streams.ticked.wait(INTERVAL * 5)
            if self._number == self._streams.number:
                return b": still here\n\n"
            if time.monotonic() > self._ends or not self._news.is_valid():
                break
            self._number = self._streams.number
            if told := self._told():
                return told
        raise StopIteration

    def close(self) -> None:
        """The response has ended (PEP 3333)."""
        if not self._closed:
            self._closed = True
            self._streams.left(self)

    def _told(self) -> bytes:
        topics, parts = self._news.topics, []
        if "status" in topics:
            parts.append(_event("status", self._streams.latest))
        if "changes" in topics:
            for number, each in list(self._streams.changed):
                if number > self._change:
                    self._change = number
                    parts.append(_event("change", each))
        if self._news.requests is not None:
            parts += self._told_requests(self._news.requests)
        return b"".join(parts)

    def _told_requests(self, search: Callable[[int], list[Json]]) -> list[bytes]:
        try:
            rows = search(self._request or 0)
        except ApiError as error:
            return [_event("problem", {"detail": str(error)})]
        is_first, self._request = self._request is None, self._request or 0
        if rows:
            self._request = max(self._request, *(row["number"] for row in rows))
        # what is older than the stream is there to be asked for
        return [] if is_first or not rows else [_event("requests", rows[::-1])]


def _event(kind: str, data: object) -> bytes:
    # JSON has no line break
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
