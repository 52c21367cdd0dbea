"""The direct exit: straight to the destination, from this machine's addresses."""

from __future__ import annotations

import hashlib
import socket as std_socket
from collections.abc import Callable, Hashable
from math import gcd
from random import Random

from gsocks.access.networks import IPNetwork
from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import AddressFamilyNotSupported, ConnectFailed, GsocksError
from gsocks.exits.base import Connected
from gsocks.exits.bind import DirectListener
from gsocks.exits.udp import DirectDatagrams
from gsocks.net.dial import DialAttempt, Dialer, Source
from gsocks.request import RESOLVE_PTR, Request
from gsocks.stream import SocketStream
from gsocks.tuples import new_tuple

_GOLDEN_RATIO = 0.6180339887498949


class DirectExit:
    """Connects from this machine; the rules are checked for every address of a name."""

    __slots__ = ("_dialer", "label")

    def __init__(self, dialer: Dialer, label: str = "direct") -> None:
        self._dialer = dialer
        self.label = label

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        sock = self._dialer.connect(request.dest, request.user, request.client)
        return Connected(SocketStream(sock), Address.from_sockaddr(sock.getsockname()))

    def begin(
        self, request: Request, done: Callable[[Connected | GsocksError | None], None]
    ) -> _DirectAttempt | None:
        """See :meth:`gsocks.exits.base.Begins.begin`."""
        attempt = _DirectAttempt(done)
        return attempt if self._dialer.begin(attempt, request.dest, request.user) else None

    def identity(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Identifies.identity`: the rules may differ by user."""
        return "" if self._dialer.allows_all else request.user or ""

    def stream_to(self, request: Request) -> SocketStream:
        """The stream of :meth:`connect`, for a caller that needs no bound address."""
        return SocketStream(self._dialer.connect(request.dest, request.user, request.client))

    def begin_stream(self, attempt: DialAttempt, dest: Address, user: str | None) -> bool:
        """Begin ``attempt`` at the stream to ``dest``; see :meth:`gsocks.net.dial.Dialer.begin`."""
        return self._dialer.begin(attempt, dest, user)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        return Connected(DirectDatagrams(self._dialer, request.user, request.client), UNSPECIFIED)

    def bind(self, request: Request) -> DirectListener:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        return DirectListener(self._dialer, request.dest, request.user, request.client)

    def look_up(self, request: Request) -> Address:
        """See :meth:`gsocks.exits.base.LooksUp.look_up`."""
        dest, dialer = request.dest, self._dialer
        ip = dest.ip if request.command is RESOLVE_PTR else None
        if ip is not None:
            return Address(dialer.reverse(ip, request.user, request.client), 0)
        return Address(str(dialer.look_up(dest.host, request.user, request.client)), 0)

    def close(self) -> None:
        """Does nothing: no connection is kept idle."""


class SourcedExit(DirectExit):
    """The same from the addresses of a network, of which each session has one of its own."""

    __slots__ = ("_sources",)

    def __init__(self, dialer: Dialer, sources: SourceNetwork, label: str) -> None:
        super().__init__(dialer.from_source(sources), label)
        self._sources = sources

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        sock = self._dialer_of(request).connect(request.dest, request.user, request.client)
        return Connected(SocketStream(sock), Address.from_sockaddr(sock.getsockname()))

    def begin(
        self, request: Request, done: Callable[[Connected | GsocksError | None], None]
    ) -> _DirectAttempt | None:
        """See :meth:`gsocks.exits.base.Begins.begin`."""
        attempt = _DirectAttempt(done)
        begun = self._dialer_of(request).begin(attempt, request.dest, request.user)
        return attempt if begun else None

    def identity(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Identifies.identity`: without a session each connection
        has another address."""
        session = request.selector.session
        return None if session is None else (super().identity(request), request.user, session)

    def stream_to(self, request: Request) -> SocketStream:
        """See :meth:`DirectExit.stream_to`."""
        dialer = self._dialer_of(request)
        return SocketStream(dialer.connect(request.dest, request.user, request.client))

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        dialer = self._dialer_of(request)
        return Connected(DirectDatagrams(dialer, request.user, request.client), UNSPECIFIED)

    def bind(self, request: Request) -> DirectListener:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        dialer = self._dialer_of(request)
        return DirectListener(dialer, request.dest, request.user, request.client)

    def _dialer_of(self, request: Request) -> Dialer:
        session = request.selector.session
        if session is None:
            return self._dialer
        return self._dialer.from_source(self._sources.of_session(request.user, session))


class _DirectAttempt(DialAttempt):
    """A connection to a destination that the hub makes."""

    __slots__ = ("_done",)

    def __init__(self, done: Callable[[Connected | GsocksError | None], None]) -> None:
        self._done = done

    def connected(self) -> None:
        """See :meth:`gsocks.net.dial.DialAttempt.connected`."""
        sock = self._sock
        stream = SocketStream(sock, watcher=self._watcher)
        self._done(new_tuple(Connected, (stream, Address.from_sockaddr(sock.getsockname()))))

    def failed(self, error: ConnectFailed) -> None:
        """See :meth:`gsocks.net.dial.DialAttempt.failed`."""
        self._done(error)


class SourceNetwork:
    """The ``source`` of a :class:`gsocks.net.dial.Dialer`: every connection from another address.

    A connection of a session comes from the session's own (:meth:`of_session`).  All others take
    turns: all host addresses of ``network`` are used (of IPv4 not the first and the last, of IPv6
    not the first, RFC 4291 section 2.6.1), and none is used again before all others were, which a
    random choice could not guarantee.  Neighbouring addresses are far apart in time, and each
    process starts at another one.

    The network must be routed to this machine; its addresses need not be configured on an interface
    if ``ip route add local NETWORK dev lo`` makes them local.  Binding such an address needs
    freebind with IPv6 and nothing with IPv4, where a missing network therefore fails at once.
    """

    __slots__ = ("_count", "_family", "_first", "_network", "_step", "_turn")

    def __init__(self, network: IPNetwork, random: Random) -> None:
        self._network = network
        self._family = std_socket.AF_INET if network.version == 4 else std_socket.AF_INET6
        skipped_first, skipped_last = _not_for_hosts(network)
        self._first = skipped_first
        self._count = network.num_addresses - skipped_first - skipped_last
        self._turn = random.randrange(self._count)
        # A step that is coprime to the count reaches all addresses; a golden ratio of the count
        # keeps the addresses of consecutive turns apart.
        self._step = max(1, int(self._count * _GOLDEN_RATIO))
        while gcd(self._step, self._count) != 1:
            self._step += 1

    def __call__(self, family: int) -> tuple[str, int]:
        """The next address, with any port.  Raises AddressFamilyNotSupported."""
        self._check(family)
        self._turn = (self._turn + self._step) % self._count
        return self._address(self._turn)

    def of_session(self, user: str | None, session: str) -> Source:
        """The source of a session: the same address each time, in every process.

        It is computed from the session's name, so that nothing has to be remembered.
        """
        digest = hashlib.blake2b(f"{user or ''}\0{session}".encode(), digest_size=16).digest()
        number = int.from_bytes(digest, "big") % self._count

        def source(family: int) -> tuple[str, int]:
            self._check(family)
            return self._address(number)

        return source

    def _check(self, family: int) -> None:
        if family != self._family:
            raise AddressFamilyNotSupported(f"only goes out from {self._network}")

    def _address(self, number: int) -> tuple[str, int]:
        return str(self._network[self._first + number]), 0


def _not_for_hosts(network: IPNetwork) -> tuple[int, int]:
    """The numbers of addresses at the beginning and at the end that hosts can't have."""
    if network.prefixlen >= network.max_prefixlen - 1:  # point-to-point, RFC 3021 and RFC 6164
        return 0, 0
    return (1, 1) if network.version == 4 else (1, 0)
