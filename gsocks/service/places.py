"""Where each section listens, and what a reload makes of it.

New addresses are opened before the old ones are closed; what stays is not touched.  Of several
processes the parent opens, and tells each worker by a socket pair what it has opened and closed:
its workers can't inherit that any more.
"""

from __future__ import annotations

import logging
import socket as std_socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from gsocks import config
from gsocks.address import Address
from gsocks.config.schema import endpoint_of
from gsocks.errors import ConfigError
from gsocks.net.endpoint import Activated, Endpoint
from gsocks.net.unix import UnixAddress
from gsocks.service.openings import Opening, Openings

log = logging.getLogger("gsocks")

#: the sections whose ``listen`` a reload takes
MOVABLE = ("server", "local", "admin", "health")

#: descriptors in one message: SCM_MAX_FD of the kernel
MAX_DESCRIPTORS = 253

#: bytes of a message
MAX_MESSAGE = 1 << 17

#: what is open for the sections, and the text of the endpoint that it was opened for
_Pool: TypeAlias = dict[str, list[tuple[Opening, str]]]

_T = TypeVar("_T")


class BothOpenings(NamedTuple):
    """A place to listen for TCP, and for UDP at the same port."""

    tcp: Opening
    udp: Opening

    def of_worker(self, number: int) -> BothOpenings | None:
        """See :meth:`gsocks.service.openings.Opening.of_worker`."""
        tcp, udp = self.tcp.of_worker(number), self.udp.of_worker(number)
        return None if tcp is None or udp is None else BothOpenings(tcp, udp)


_O = TypeVar("_O", Opening, BothOpenings)


class Places(NamedTuple):
    """What was opened for each section, and what the config has there."""

    server: list[tuple[Opening, Endpoint]]
    local: list[tuple[Opening, config.ListenAddress]]
    forwards: list[tuple[Opening, config.Leg]]
    redirect: list[tuple[Opening, config.ListenAddress]]
    dns: list[tuple[BothOpenings, config.ListenAddress]]
    admin: list[tuple[Opening, Endpoint]]
    health: list[tuple[Opening, Endpoint]]

    @classmethod
    def none(cls) -> Places:
        """Nothing is open yet."""
        return cls([], [], [], [], [], [], [])

    def of_worker(self, number: int) -> Places:
        """The same with what that worker listens at.  Raises ConfigError."""
        return Places(
            _of_worker(number, self.server),
            _of_worker(number, self.local),
            _of_worker(number, self.forwards),
            _of_worker(number, self.redirect),
            _of_worker(number, self.dns),
            _of_worker(number, self.admin),
            _of_worker(number, self.health),
        )

    @property
    def pool(self) -> _Pool:
        """What may go on."""
        return {
            name: [(opening, str(endpoint_of(entry))) for opening, entry in getattr(self, name)]
            for name in MOVABLE
        }


def _of_worker(number: int, places: Iterable[tuple[_O, _T]]) -> list[tuple[_O, _T]]:
    found = ((opening.of_worker(number), entry) for opening, entry in places)
    return [(own, entry) for own, entry in found if own is not None]


class Move(NamedTuple):
    """What a reload has made of the places."""

    places: Places
    opened: list[Opening]
    #: what is open no more once all that was opened serves
    closed: list[Opening]


def _move(
    places: Places,
    pool: _Pool,
    settings: config.Config,
    open_: Callable[[Endpoint, Sequence[Opening]], list[Opening]],
    release: Callable[[Opening], object],
) -> Move:
    """Have each entry of ``settings`` go on where it was, and open the others.

    Raises ConfigError, and leaves nothing open.
    """
    matched: dict[str, list[tuple[list[Opening], Endpoint, Any]]] = {}
    closed: list[Opening] = []
    for name in MOVABLE:
        free: dict[str, list[Opening]] = {}
        for opening, text in pool.get(name, ()):
            free.setdefault(text, []).append(opening)
        matched[name] = []
        for entry in _entries(settings, name):
            endpoint = endpoint_of(entry)
            have = free.get(str(endpoint), [])
            # what systemd passes under one name may be several sockets
            taken = len(have) if isinstance(endpoint, Activated) else 1
            matched[name].append((have[:taken], endpoint, entry))
            del have[:taken]
        closed += [each for left in free.values() for each in left]
    opened: list[Opening] = []
    found: dict[str, list[tuple[Opening, Any]]] = {}
    try:
        for name, entries in matched.items():
            found[name] = []
            for have, endpoint, entry in entries:
                if not have:
                    have = open_(endpoint, closed)
                    opened += have
                found[name] += [(each, entry) for each in have]
    except ConfigError:
        for each in opened:
            release(each)
        raise
    server, local, admin, health = (found[name] for name in MOVABLE)
    moved = places._replace(server=server, local=local, admin=admin, health=health)
    return Move(moved, opened, closed)


def _entries(settings: config.Config, name: str) -> Sequence[Any]:
    section = getattr(settings, name)
    return () if section is None else tuple(section.listen)


def move(places: Places, settings: config.Config, openings: Openings) -> Move:
    """Open what ``settings`` listen at besides ``places``; closes nothing.

    Raises ConfigError, and changes nothing, if an address can't be had.
    """
    return _move(
        places,
        places.pool,
        settings,
        lambda endpoint, closed: openings.open(endpoint, instead=closed),
        openings.release,
    )


# --- workers ------------------------------------------------------------------------------------


class _Opened(msgspec.Struct, array_like=True):
    """An opening, as a worker is told of it."""

    number: int
    host: str
    port: int
    is_unix: bool
    #: the worker listens by itself
    is_reserved: bool


class _Message(msgspec.Struct, array_like=True):
    """What is open now: by sections, the numbers and the texts of the endpoints."""

    opened: list[_Opened]
    open_now: dict[str, list[tuple[int, str]]]


class ParentChannels:
    """The ends of all socket pairs, made before the fork, one pair for each worker."""

    def __init__(self, workers: int) -> None:
        kind = std_socket.SOCK_SEQPACKET | std_socket.SOCK_NONBLOCK
        self._pairs = [std_socket.socketpair(std_socket.AF_UNIX, kind) for _ in range(workers)]

    def tell(self, moved: Move) -> None:
        """Tell all workers what is open now, before they are told to reload."""
        sent = [each for each in moved.opened if not each.is_reserved]
        message = msgspec.json.encode(
            _Message(
                [
                    _Opened(
                        each.number,
                        each.bound.host,
                        each.bound.port,
                        isinstance(each.bound, UnixAddress),
                        each.is_reserved,
                    )
                    for each in moved.opened
                ],
                {
                    name: [(opening.number, text) for opening, text in entries]
                    for name, entries in moved.places.pool.items()
                },
            )
        )
        descriptors = [each.socket.fileno() for each in sent]
        for number, (own, _) in enumerate(self._pairs):
            trouble = _send(own, message, descriptors)
            if trouble:  # it has not read what it was told before, for long
                log.error("worker %d can't be told of addresses: %s", number, trouble)

    def of_worker(self, number: int, places: Places) -> WorkerChannel:
        """The end of that worker, in it; ``places``: what the parent had opened before it."""
        for index, (own, other) in enumerate(self._pairs):
            own.close()
            if index != number:
                other.close()
        return WorkerChannel(self._pairs[number][1], number, places)


class WorkerChannel:
    """What a worker knows of what its parent has opened."""

    def __init__(self, sock: std_socket.socket, number: int, places: Places) -> None:
        self._sock = sock
        self._number = number
        self._pool = places.pool
        self._known = {
            opening.number: opening for each in self._pool.values() for opening, _ in each
        }
        self._latest = max(self._known, default=0)

    def move(self, places: Places, settings: config.Config) -> Move:
        """As :func:`move`, by what the parent has opened.  Raises ConfigError."""
        self._receive()
        own = {opening.number: opening for each in places.pool.values() for opening, _ in each}
        made: list[Opening] = []
        pool: _Pool = {name: [] for name in MOVABLE}
        try:
            for name, entries in self._pool.items():
                for opening, text in entries:
                    mine = own.get(opening.number)
                    if mine is None:
                        mine = opening.of_worker(self._number)
                        if mine is None:
                            continue
                        made.append(mine)
                    pool[name].append((mine, text))
            moved = _move(places, pool, settings, _unknown, _close)
        except ConfigError:
            for each in made:
                _close(each)
            raise
        kept = {opening.number for each in moved.places.pool.values() for opening, _ in each}
        gone = [opening for number, opening in own.items() if number not in kept]
        for each in made:
            if each.number not in kept:
                _close(each)
        return Move(moved.places, made, gone)

    def _receive(self) -> None:
        """Take all that the parent has told."""
        while True:
            try:
                raw, descriptors, _, _ = std_socket.recv_fds(
                    self._sock, MAX_MESSAGE, MAX_DESCRIPTORS
                )
            except BlockingIOError:
                return
            message = msgspec.json.decode(raw, type=_Message)
            left = iter(descriptors)
            for each in message.opened:
                sock = None if each.is_reserved else _inherited(left)
                if each.number <= self._latest:  # it was told the worker before this one
                    if sock is not None:
                        sock.close()
                    continue
                bound = (UnixAddress if each.is_unix else Address)(each.host, each.port)
                sockets = () if sock is None else (sock,) * (self._number + 1)
                self._known[each.number] = Opening(bound, sockets, each.is_reserved, each.number)
            known = self._known
            self._pool = {
                name: [(known[number], text) for number, text in entries if number in known]
                for name, entries in message.open_now.items()
            }
            self._forget()

    def _forget(self) -> None:
        """Let go of what is open no more."""
        now = {opening.number for each in self._pool.values() for opening, _ in each}
        for number in [each for each in self._known if each not in now]:
            del self._known[number]


def _send(sock: std_socket.socket, message: bytes, descriptors: Sequence[int]) -> str:
    """Why it can't be sent; empty if it was."""
    try:
        std_socket.send_fds(sock, [message], descriptors[:MAX_DESCRIPTORS])
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _inherited(descriptors: Iterator[int]) -> std_socket.socket:
    sock = std_socket.socket(fileno=next(descriptors))
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _unknown(endpoint: Endpoint, _: Sequence[Opening]) -> list[Opening]:
    raise ConfigError(f"{endpoint}: the config has changed once more (another reload takes it)")


def _close(opening: Opening) -> None:
    for sock in opening.sockets:
        sock.close()
