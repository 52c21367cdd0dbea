"""Both directions between two sockets, until one of them has much to carry.

Most connections carry a few small messages: what has arrived at one socket, in one read, is sent by
the other in one write.  For that two pumps and their streams are more than is needed; here it is
one object, two watchers and one call for each message.  The first message that fills a chunk, or
finds no room, makes it pumps (net/pump.py, net/splice.py), which go on from there.
"""

from __future__ import annotations

import os
from typing import Any

from gsocks.errors import StreamClosed, StreamError, stream_failure
from gsocks.net.pump import Carrier, Pump
from gsocks.net.splice import SplicePump
from gsocks.sock import AnySocket
from gsocks.stream import CHUNK, NonblockingStream, SocketStream, scratch_of_this_hub

_read, _write = os.readv, os.write


class SocketPair:
    """Carries bytes between ``sides`` both ways, as two :class:`gsocks.net.pump.Pump` do.

    None of the streams may have anything prefetched.
    """

    __slots__ = ("_carrier", "_pumps", "_scratch", "_sides", "_socks", "_watchers")

    def __init__(self, carrier: Carrier, sides: tuple[SocketStream, SocketStream]) -> None:
        self._carrier = carrier
        self._sides = sides
        self._scratch = scratch_of_this_hub()
        #: of the streams, and asked for their descriptor each time: of a socket that was closed
        #: behind our back that is -1, and never one that another connection has by now
        self._socks: list[AnySocket]
        #: of each side that has not ended
        self._watchers: list[Any] = [None, None]
        #: what goes on instead, of the directions that have not ended
        self._pumps: tuple[Pump, ...] = ()

    def __repr__(self) -> str:
        if self._pumps:
            return "; ".join(map(repr, self._pumps))
        client, remote = self._sides
        waits = [watcher is not None for watcher in self._watchers]
        state = "stopped" if not any(waits) else "waits"
        return f"<{type(self).__name__}: {client!r} <-> {remote!r}, {state}>"

    def start(self) -> None:
        """Carry what the sockets will have received."""
        socks = []
        for source, stream in enumerate(self._sides):
            try:
                sock, watcher = stream.descriptor()
            except StreamError as error:
                self._carrier.failed(error, source)
                return
            socks.append(sock)
            self._watchers[source] = watcher
            if watcher.active:
                watcher.callback, watcher.args = _carry, (self, source)
            else:
                watcher.start(_carry, self, source)
        self._socks = socks

    def stop(self) -> None:
        """Carry nothing any more.  Does nothing the second time."""
        for pump in self._pumps:
            pump.stop()
        watchers, self._watchers = self._watchers, [None, None]
        for watcher in watchers:
            if watcher is not None:
                watcher.close()

    def _end(self, source: int) -> None:
        """The source has ended: pass that on."""
        sides, watchers = self._sides, self._watchers
        sides[source].read_ended = True
        watcher, watchers[source] = watchers[source], None
        watcher.close()
        try:  # although a close may follow: it tells whether the sink has been reset since
            sides[1 - source].write_eof_nowait(self._scratch)
        except StreamError as error:
            self._carrier.failed(error, 1 - source)
        else:
            self._carrier.ended()

    def _hand_over(self, source: int, count: int, sent: int, data: memoryview) -> None:
        """Have pumps go on, behind ``data`` of the source, of which so much was sent."""
        pumps = {}
        for side, watcher in enumerate(self._watchers):
            if watcher is not None:
                pumps[side] = pump = SplicePump(self._carrier, self._sides, side)
                pump.take_over(watcher)
        self._watchers = [None, None]
        self._pumps = tuple(pumps.values())
        pump = pumps[source]
        if count >= CHUNK:
            pump.on_bulk()
        if sent < count:
            self._sides[1 - source].keep_unsent(data[sent:])
            pump.wait_for_room(count)
        else:
            self._carrier.passed(source, count)


def _carry(pair: SocketPair, source: int) -> None:
    """Pass on what has arrived at the source.  Runs in the hub, when that can be read.

    A function, and its arguments in a tuple of the watcher: one object for a side, as a method
    would be, and less to call.
    """
    carrier, scratch, socks = pair._carrier, pair._scratch, pair._socks
    at_work = source
    try:
        count = _read(socks[source].fileno(), scratch.rooms)
        if not count:
            pair._end(source)
            return
        at_work = 1 - source
        data = scratch.plain[:count]
        try:
            sent = _write(socks[at_work].fileno(), data)
        except BlockingIOError:
            sent = 0
        if sent < count or count >= CHUNK:
            pair._hand_over(source, count, sent, data)
        else:
            carrier.passed(source, count)
    except BlockingIOError:
        return
    except OSError as error:
        carrier.failed(stream_failure(error), at_work)
    except BaseException:  # a fault of gsocks: neither side may be left waiting
        carrier.failed(StreamClosed("stopped"), None)
        raise


def carriers_between(
    carrier: Carrier, sides: tuple[NonblockingStream, NonblockingStream]
) -> tuple[Pump, ...] | tuple[SocketPair]:
    """What carries the bytes between these two streams, both ways."""
    client, remote = sides
    if type(client) is SocketStream and type(remote) is SocketStream:
        if not (client.has_buffered or remote.has_buffered):
            return (SocketPair(carrier, (client, remote)),)
        return SplicePump(carrier, sides, 0), SplicePump(carrier, sides, 1)
    return Pump(carrier, sides, 0), Pump(carrier, sides, 1)
