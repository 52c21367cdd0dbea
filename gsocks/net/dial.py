"""A destination to a connected socket: resolve the name, ask the rules, race the addresses.

The name is resolved once, and only addresses that the rules allow are connected to: a name can't
be allowed by one DNS answer and reached by another (DNS rebinding).

The addresses of a name are raced as in Happy Eyeballs (RFC 8305).  A race has no greenlet of its
own: the calling greenlet starts the attempts and waits for all of them at once.  So whatever ends
that greenlet ends the race, and closes every socket that has not won.
"""

from __future__ import annotations

import copy
import errno
import os
import socket as std_socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from select import POLLOUT
from typing import Any, Literal

import gevent
from gevent.select import poll
from gevent.socket import wait_write

from gsocks.access.rule_index import SOME_PORT
from gsocks.access.rules import ALLOW, ALLOW_ALL, DENY, Decision, Rules, denied
from gsocks.address import Address, IPAddress, ip_of
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    HostUnreachable,
    LoopDetected,
    NameNotFound,
    NetworkUnreachable,
    OutOfResources,
    connect_failure,
)
from gsocks.net.deadlines import Deadlines
from gsocks.net.own_listeners import OwnListeners
from gsocks.net.redirection import own_connections
from gsocks.net.resolve import Resolver
from gsocks.net.route import Route
from gsocks.sock import READ, WRITE, AnySocket, Socket
from gsocks.stream import tune

#: the local address and port (0 for any) to connect from, for AF_INET or AF_INET6; None leaves
#: both to the kernel; raises ConnectFailed if no address of that family may be used
Source = Callable[[int], tuple[str, int] | None]

# Which failure is reported when all attempts fail: the first kind tells most about the destination.
_MOST_TELLING = (ConnectionRefused, ConnectTimeout, HostUnreachable, NetworkUnreachable)

# linux/in.h; the socket module names the second since Python 3.12 only, and the first not at all
_IP_FREEBIND = 15
_IP_BIND_ADDRESS_NO_PORT = 24


class Dialer:
    """Connects to the destinations that its rules allow."""

    #: seconds after which the next address is tried while the earlier ones have not answered: the
    #: Connection Attempt Delay of RFC 8305 section 5
    attempt_delay = 0.25
    #: addresses of one name that are tried; the owner of a name may list hundreds, and each
    #: request for it would send as many connections
    max_addresses = 16

    __slots__ = (
        "_deadlines",
        "_freebind",
        "_own",
        "_prefer",
        "_resolver",
        "_route",
        "_rules",
        "_source",
        "timeout",
    )

    def __init__(
        self,
        rules: Rules,
        resolver: Resolver,
        *,
        timeout: float = 10.0,
        prefer: Literal[4, 6] = 6,
        source: Source | None = None,
        freebind: bool = False,
        route: Route | None = None,
        own_listeners: OwnListeners | None = None,
    ) -> None:
        """A dialer for requests, or with ``ALLOW_ALL`` for the operator's own servers.

        ``timeout``: seconds for name resolution and connection together.  ``prefer``: the IP
        version that a race begins with.  ``freebind``: ``source`` may return addresses that are
        configured on no interface of this machine.  ``route``: by which way its sockets go; None:
        the kernel chooses.  ``own_listeners``: the listeners that are never
        connected to, for a dialer that connects to their exits.
        """
        self._rules = rules
        self._resolver = resolver
        self._prefer = prefer
        self._source = source
        self._freebind = freebind
        self._route = route
        self._own = own_listeners
        self.timeout = timeout
        #: of the attempts that the hub carries
        self._deadlines = Deadlines(timeout)

    def from_source(self, source: Source) -> Dialer:
        """The same, but from another source."""
        made = copy.copy(self)
        made._source = source
        return made

    @property
    def allows_all(self) -> bool:
        """Whether no rules are asked: it is for the operator's own servers."""
        return self._rules is ALLOW_ALL

    def connect(self, dest: Address, user: str | None = None, client: str = "") -> Socket:
        """A connected socket, with the options that :func:`gsocks.stream.tune` sets.

        ``user`` and ``client``, its address and port, tell for whom it is.

        Raises ConnectFailed: what :meth:`allowed_addresses` raises, ConnectTimeout, or if every
        address failed, the failure that tells most about the destination.
        """
        if dest.port == 0:
            raise ConnectFailed(f"{dest}: nothing can be reached at port 0")
        if dest.ip is not None:
            if not self.allows_all:
                self.allowed_addresses(dest, user)
            return self._connect_to_only(dest)
        if self._route is not None:
            self._route.check()  # before the name is looked up, which goes another way
        race = _Race(dest.port, self._source, self._freebind, self._route, self._own)
        try:
            sock = call_with_timeout(
                self.timeout, self._connect, dest, user, client, race, on_timeout=None
            )
            if sock is None:
                race.failures.append(ConnectTimeout(f"{dest}: no answer within {self.timeout:g} s"))
                raise race.most_telling_failure()
            return sock
        finally:
            race.close()

    def begin(self, attempt: DialAttempt, dest: Address, user: str | None = None) -> bool:
        """Begin to connect to ``dest`` without a greenlet; ``attempt`` is told of the end.

        False if the name has to be looked up first, or has several addresses, which have to be
        raced.  Raises what :meth:`connect` does, where that is known at once.
        """
        host, port = dest
        if port == 0:
            return False
        if ip_of(host) is None:
            known = self._known_address(dest, user)
            if known is None:
                return False
            host = str(known)
        elif self._rules is not ALLOW_ALL:
            self._judge(dest, user)
        sock = _begin(host, port, self._source, self._freebind, self._route, self._own)
        attempt.begun(sock, dest, self._deadlines)
        return True

    def _known_address(self, dest: Address, user: str | None) -> IPAddress | None:
        """The only allowed address of a name, if it is known; None if not.  Raises Denied."""
        decision = self._judge(dest, user)
        known = self._resolver.known(dest.host) if "." in dest.host else ()
        if known and decision.verdict is not ALLOW:
            known = self._allowed_of(known, dest, user)
        return known[0] if len(known) == 1 else None

    def allowed_addresses(
        self, dest: Address, user: str | None = None, client: str = ""
    ) -> Sequence[IPAddress]:
        """The addresses of ``dest`` that the rules allow, in the resolver's order.

        A denied name is not looked up, and what a search domain completes has to be allowed as the
        complete name too.  Raises Denied, which names the rule, if no address is allowed, and what
        :meth:`gsocks.net.resolve.Resolver.look_up` raises.  Has no timeout.
        """
        decision = self._judge(dest, user)
        names = self._resolver.names_of(dest.host)
        addresses: Sequence[IPAddress]
        if len(names) == 1:
            addresses = self._resolver.look_up(names[0], user, client)
        else:
            addresses = self._addresses_of_first(names, dest.port, user, client)
        if decision.verdict is ALLOW:
            return addresses
        return self._allowed_of(addresses, dest, user)

    def _judge(self, dest: Address, user: str | None) -> Decision:
        """What the rules say before the name is looked up.  Raises Denied."""
        decision = self._rules.before_resolving(dest, user)
        if decision.verdict is DENY:
            raise denied(dest, decision)
        return decision

    def _addresses_of_first(
        self, names: Sequence[str], port: int, user: str | None, client: str
    ) -> Sequence[IPAddress]:
        """The allowed addresses of the first name that there is."""
        failure = NameNotFound("no name")
        for name in names:
            complete = Address(name, port)
            decision = self._judge(complete, user)
            try:
                addresses = self._resolver.look_up(name, user, client)
            except NameNotFound as error:
                failure = error
                continue
            if decision.verdict is ALLOW:
                return addresses
            return self._allowed_of(addresses, complete, user)
        raise failure

    def _allowed_of(
        self, addresses: Sequence[IPAddress], dest: Address, user: str | None
    ) -> Sequence[IPAddress]:
        decisions = [self._rules.for_ip(dest, ip, user) for ip in addresses]
        allowed = tuple(
            ip
            for ip, decision in zip(addresses, decisions, strict=True)
            if decision.verdict is ALLOW
        )
        if not allowed:
            raise denied(dest, decisions[0])
        return allowed

    def look_up(self, host: str, user: str | None = None, client: str = "") -> IPAddress:
        """An address of ``host`` that the rules allow at some port.

        It is one of IPv4 if there is one, which every client can use.
        Raises as :meth:`allowed_addresses`, and has no timeout, as the next one.
        """
        addresses = self.allowed_addresses(Address(host, SOME_PORT), user, client)
        return next((ip for ip in addresses if ip.version == 4), addresses[0])

    def reverse(self, ip: IPAddress, user: str | None = None, client: str = "") -> str:
        """The name of ``ip``, if the rules allow that address at some port.

        Raises Denied, and as :meth:`gsocks.net.resolve.Resolver.reverse`.
        """
        self._judge(Address(str(ip), SOME_PORT), user)
        return self._resolver.reverse(ip, user, client)

    def route(self, sock: AnySocket) -> None:
        """Have ``sock`` go the way of this dialer.  Raises ExitFailed."""
        if self._route is not None:
            self._route.apply(sock)

    def bind(self, sock: AnySocket) -> bool:
        """Bind ``sock`` to the source address of this dialer, and to any port; it goes its way.

        False if the kernel chooses the address.  Raises ConnectFailed if no address of that
        family may be used, and OSError.
        """
        self.route(sock)
        return _bind(sock, self._source, self._freebind)

    def _connect_to_only(self, dest: Address) -> Socket:
        """Connect to a destination that is an IP address: there is nothing to race."""
        sock = _begin(dest.host, dest.port, self._source, self._freebind, self._route, self._own)
        try:
            if call_with_timeout(self.timeout, wait_write, sock.fileno(), on_timeout=True):
                raise ConnectTimeout(f"{dest}: no answer within {self.timeout:g} s")
            _raise_failure(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, dest: Address, user: str | None, client: str, race: _Race) -> Socket:
        addresses = _interleave(self.allowed_addresses(dest, user, client), self._prefer)
        to_try = deque(addresses[: self.max_addresses])
        while to_try or race.under_way:
            if to_try and not race.start(to_try.popleft()):
                continue
            winner = race.wait(self.attempt_delay if to_try else None)
            if winner is not None:
                return winner
        raise race.most_telling_failure()


class DialAttempt:
    """A connection that the hub makes to one address; see :meth:`Dialer.begin`.

    What is made of the connection is for a subclass to say.
    """

    __slots__ = ("_deadlines", "_dest", "_sock", "_watcher")

    _sock: Socket
    _dest: Address
    _deadlines: Deadlines
    _watcher: Any

    def connected(self) -> None:
        """Has connected; the watcher is one for READ now, and not active."""
        raise NotImplementedError

    def failed(self, error: ConnectFailed) -> None:
        """Has not, and nothing is open."""
        raise NotImplementedError

    def begun(self, sock: Socket, dest: Address, deadlines: Deadlines) -> None:
        """The dialer has begun it."""
        self._sock = sock
        self._dest = dest
        self._deadlines = deadlines
        deadlines.add(self, time.monotonic())
        self._watcher = watcher = gevent.get_hub().loop.io(sock.fileno(), WRITE)
        watcher.start(self._on_writable)

    def cancel(self) -> None:
        """See :meth:`gsocks.exits.base.Attempt.cancel`."""
        self._deadlines.discard(self)
        self._watcher.close()
        self._sock.close()

    def expired(self) -> None:
        """See :meth:`gsocks.net.deadlines.Expires.expired`."""
        self._watcher.close()
        self._sock.close()
        seconds = self._deadlines.seconds
        self.failed(ConnectTimeout(f"{self._dest}: no answer within {seconds:g} s"))

    def _on_writable(self) -> None:
        sock, watcher = self._sock, self._watcher
        self._deadlines.discard(self)
        error = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
        if error:
            watcher.close()
            sock.close()
            self.failed(connect_failure(OSError(error, os.strerror(error))))
            return
        watcher.stop()
        watcher.events = READ
        self.connected()


class _Race:
    """Attempts to connect to one port at several addresses; owns their sockets."""

    __slots__ = ("_freebind", "_own", "_port", "_route", "_source", "failures", "under_way")

    def __init__(
        self,
        port: int,
        source: Source | None,
        freebind: bool,
        route: Route | None,
        own: OwnListeners | None,
    ) -> None:
        self._port = port
        self._source = source
        self._freebind = freebind
        self._route = route
        self._own = own
        #: the attempts that have no result yet, by descriptor, in the order of their start
        self.under_way: dict[int, Socket] = {}
        #: the results of the attempts that have failed
        self.failures: list[ConnectFailed] = []

    def start(self, ip: IPAddress) -> bool:
        """Begin to connect to ``ip``; False if that failed at once."""
        try:
            sock = _begin(str(ip), self._port, self._source, self._freebind, self._route, self._own)
        except ConnectFailed as failure:
            self.failures.append(failure)
            return False
        self.under_way[sock.fileno()] = sock
        return True

    def wait(self, seconds: float | None) -> Socket | None:
        """The socket that has connected; None if an attempt failed or ``seconds`` have passed."""
        for fd in self._finished(seconds):
            sock = self.under_way.pop(fd)
            try:
                _raise_failure(sock)
            except ConnectFailed as failure:
                sock.close()
                self.failures.append(failure)
            else:
                return sock
        return None

    def _finished(self, seconds: float | None) -> list[int]:
        """The attempts that have connected or failed, in the order of their start."""
        if len(self.under_way) == 1:  # the usual case, 25 us cheaper than poll
            (fd,) = self.under_way
            if seconds is None:
                wait_write(fd)
                return [fd]
            return [] if call_with_timeout(seconds, wait_write, fd, on_timeout=True) else [fd]
        changes = poll()
        for fd in self.under_way:
            changes.register(fd, POLLOUT)
        writable = {fd for fd, _ in changes.poll(None if seconds is None else seconds * 1000)}
        return [fd for fd in self.under_way if fd in writable]

    def most_telling_failure(self) -> ConnectFailed:
        """Why no address has connected; the first failure among those of equal rank."""
        return min(self.failures, key=_rank)

    def close(self) -> None:
        """Close the attempts that have not won."""
        for sock in self.under_way.values():
            sock.close()
        self.under_way.clear()
        # The traceback of a raised failure references this race, which must not reference the
        # failure in turn: the cycle would wait for the garbage collector.
        self.failures.clear()


def _begin(
    host: str,
    port: int,
    source: Source | None,
    freebind: bool,
    route: Route | None,
    own: OwnListeners | None,
) -> Socket:
    """A socket that is connecting to an IP address.  Raises ConnectFailed."""
    ip = None if own is None else ip_of(host)
    if own is not None and ip is not None and own.leads_back(ip, port):
        at = Address(host, port)
        raise LoopDetected(f"{at} is a listener of this gateway, and no exit can be one")
    family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
    try:
        sock = Socket(family)
    except OSError as error:
        raise connect_failure(error) from None
    try:
        tune(sock)
        if route is not None:
            route.apply(sock)
        if source is not None:
            # The kernel chooses the port in connect(), when the destination is known: else one
            # source address would have only its 28,000 ephemeral ports for all destinations.
            sock.setsockopt(std_socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            _bind(sock, source, freebind)
    except OSError as error:
        sock.close()
        raise connect_failure(error) from None
    except BaseException:
        sock.close()
        raise
    try:
        failure = sock.connect_ex((host, port))
    except BaseException:
        sock.close()
        raise
    if failure and failure != errno.EINPROGRESS:
        sock.close()
        if failure == errno.EADDRNOTAVAIL and _has_address_for(family, host, port):
            raise OutOfResources(f"no local port is free for {host} port {port}")
        raise connect_failure(OSError(failure, os.strerror(failure)))
    if own is not None and ip is not None:
        own.connecting(sock, ip)
    own_connections.begun(sock)
    return sock


def _has_address_for(family: int, host: str, port: int) -> bool:
    """Whether a connection there would have a source address, so that it is a port that it lacks.

    connect(2) has one error for both.  A datagram socket, which sends nothing here, has ports of
    its own.
    """
    try:
        with std_socket.socket(family, std_socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
    except OSError:
        return False
    return True


def _raise_failure(sock: Socket) -> None:
    """Raise ConnectFailed if a socket that has become writable has not connected."""
    error = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
    if error:
        raise connect_failure(OSError(error, os.strerror(error)))


def _bind(sock: AnySocket, source: Source | None, freebind: bool) -> bool:
    local = source(sock.family) if source is not None else None
    if local is None:
        return False
    if freebind:
        sock.setsockopt(std_socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.bind(local)
    return True


def _interleave(addresses: Sequence[IPAddress], first: int) -> list[IPAddress]:
    """The addresses with their families alternating, each in its order (RFC 8305 section 4)."""
    preferred = [ip for ip in addresses if ip.version == first]
    others = [ip for ip in addresses if ip.version != first]
    return [ip for pair in zip_longest(preferred, others) for ip in pair if ip is not None]


def _rank(failure: ConnectFailed) -> int:
    for rank, kind in enumerate(_MOST_TELLING):
        if isinstance(failure, kind):
            return rank
    return len(_MOST_TELLING)
