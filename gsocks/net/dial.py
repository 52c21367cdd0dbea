"""A name to a connected socket: looked up once, asked of the rules, raced.

Nothing is connected but an address that the rules were asked about, so a name can't be allowed
by one answer of the DNS and reached by another (DNS rebinding).

A race needs no greenlet of its own: the caller's greenlet starts the attempts and waits for all
of them at once.  So whatever ends that greenlet ends the race.
"""

from __future__ import annotations

import os
import socket as std_socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from select import POLLOUT
from typing import Literal, NamedTuple

import gevent
from gevent.select import poll
from gevent.socket import getaddrinfo, socket, wait_write

from gsocks.address import Address, IPAddress, ip_of
from gsocks.errors import (
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    Forbidden,
    HostUnreachable,
    LimitReached,
    NameNotFound,
    NetworkUnreachable,
    OutOfResources,
    connect_failure,
)
from gsocks.rules import Rules, Verdict
from gsocks.stream import tune
from gsocks.within import within

#: the IP addresses of a name, as text; raises OSError, socket.gaierror among them
Lookup = Callable[[str], Sequence[str]]

#: the local address and port (0 for any) to connect from, for AF_INET or AF_INET6; None leaves
#: both to the kernel, and a ConnectFailed means that none of that family may be used
Source = Callable[[int], tuple[str, int] | None]

# What getaddrinfo says when it does not mean that there is no such name.
_LOOKUP_FAILURES: dict[int, type[ConnectFailed]] = {
    std_socket.EAI_AGAIN: HostUnreachable,
    std_socket.EAI_FAIL: HostUnreachable,
    std_socket.EAI_MEMORY: OutOfResources,
}

# The more a failure tells about the destination, the earlier it stands.
_TELLING = (ConnectionRefused, ConnectTimeout, HostUnreachable, NetworkUnreachable)

# linux/in.h; the socket module names the second since Python 3.12 only, and the first not at all
_IP_FREEBIND = 15
_IP_BIND_ADDRESS_NO_PORT = 24


def system_lookup(host: str) -> list[str]:
    """The addresses of ``host`` by /etc/hosts and the DNS, in one of gevent's resolver threads.

    Without AI_ADDRCONFIG, which takes ::1 from localhost where that is the only IPv6 address.
    On a machine without IPv6 the attempt to connect to it fails at once.
    """
    found = getaddrinfo(host, None, type=std_socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class _Answer(NamedTuple):
    """What a look-up gave: addresses, or why there are none."""

    addresses: tuple[IPAddress, ...]
    failure: type[ConnectFailed] | None = None
    message: str = ""

    def get(self) -> tuple[IPAddress, ...]:
        if self.failure is not None:
            # made anew for each asker: a kept error would gather the tracebacks of them all
            raise self.failure(self.message)
        return self.addresses


class Resolver:
    """Names to addresses, with a cache, and with one look-up at a time for each name."""

    #: seconds that addresses are used again; getaddrinfo doesn't tell the DNS's own bound
    POSITIVE_SECONDS = 60.0
    #: seconds that "no such name" is; other failures are not kept
    NEGATIVE_SECONDS = 5.0
    #: names in the cache; the least recently used goes
    MAX_NAMES = 4096
    #: names being looked up or waiting for a resolver thread; a stranger may ask for any number
    MAX_LOOKUPS = 256

    __slots__ = ("_cache", "_lookup", "_now", "_under_way")

    def __init__(
        self, lookup: Lookup = system_lookup, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup = lookup
        self._now = now
        self._cache: OrderedDict[str, tuple[_Answer, float]] = OrderedDict()
        self._under_way: dict[str, gevent.Greenlet[[str], _Answer]] = {}

    def resolve(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of ``host``, in the system's order of preference; at least one.

        An IP literal is its own address.  Raises NameNotFound; HostUnreachable if the name
        servers don't answer; LimitReached if too many names are being looked up.
        """
        ip = ip_of(host)
        if ip is not None:
            return (ip,)
        cached = self._cache.get(host)
        if cached is not None:
            answer, expires = cached
            if self._now() < expires:
                self._cache.move_to_end(host)
                return answer.get()
        # The look-up has a greenlet of its own: an asker who is killed, or runs out of time,
        # takes it from nobody.
        look_up = self._under_way.get(host)
        if look_up is None:
            if len(self._under_way) >= self.MAX_LOOKUPS:
                raise LimitReached(f"{host}: too many other names are being looked up")
            look_up = self._under_way[host] = gevent.spawn(self._look_up, host)
        return look_up.get().get()

    def _look_up(self, host: str) -> _Answer:
        try:
            answer = self._ask(host)
        finally:
            del self._under_way[host]
        if answer.failure is None:
            self._keep(host, answer, self.POSITIVE_SECONDS)
        elif answer.failure is NameNotFound:
            self._keep(host, answer, self.NEGATIVE_SECONDS)
        return answer

    def _keep(self, host: str, answer: _Answer, seconds: float) -> None:
        self._cache[host] = (answer, self._now() + seconds)
        self._cache.move_to_end(host)
        if len(self._cache) > self.MAX_NAMES:
            self._cache.popitem(last=False)

    def _ask(self, host: str) -> _Answer:
        try:
            # getaddrinfo does the same, but in a resolver thread, whose errors gevent prints
            # before it raises them: anybody could fill the log.
            host.encode("idna")
            found = self._lookup(host)
        except UnicodeError:
            return _Answer((), NameNotFound, f"{host}: the DNS can't have such a name")
        except std_socket.gaierror as error:
            failure = _LOOKUP_FAILURES.get(error.errno or 0, NameNotFound)
            return _Answer((), failure, f"{host}: {error.strerror}")
        except OSError as error:
            failed = connect_failure(error)
            return _Answer((), type(failed), f"{host}: {failed}")
        ips = [Address.from_sockaddr((text, 0)).ip for text in found]
        addresses = tuple(dict.fromkeys(ip for ip in ips if ip is not None))
        if not addresses:
            return _Answer((), NameNotFound, f"{host}: has no address")
        return _Answer(addresses)


class Dialer:
    """Connects to the destinations that its rules allow."""

    #: seconds after which the next address is tried while the former are silent; the Connection
    #: Attempt Delay of RFC 8305 section 5
    ATTEMPT_DELAY = 0.25
    #: addresses of one name that are tried; its owner may list hundreds, and have each request
    #: of a client send as many connections
    MAX_ADDRESSES = 16

    __slots__ = ("_freebind", "_prefer", "_resolver", "_rules", "_source", "timeout")

    def __init__(
        self,
        rules: Rules,
        resolver: Resolver,
        *,
        timeout: float = 10.0,
        prefer: Literal[4, 6] = 6,
        source: Source | None = None,
        freebind: bool = False,
    ) -> None:
        """A dialer for requests, or with :data:`gsocks.rules.ALLOW_ALL` for the operator's own
        servers.

        ``timeout`` is in seconds, for name and connection together; ``prefer`` is the IP
        version that a race begins with; ``freebind`` lets ``source`` give addresses that stand
        on no interface of this machine.
        """
        self._rules = rules
        self._resolver = resolver
        self._prefer = prefer
        self._source = source
        self._freebind = freebind
        self.timeout = timeout

    def connect(self, dest: Address, user: str | None = None) -> socket:
        """A connected socket, with the options that :func:`gsocks.stream.tune` sets.

        Raises ConnectFailed: what :meth:`allowed_addresses` raises, ConnectTimeout, or why the
        addresses could not be connected to, which is the most telling of their failures.
        """
        if dest.port == 0:
            raise ConnectFailed(f"{dest}: nothing can be reached at port 0")
        if dest.ip is not None:
            self.allowed_addresses(dest, user)
            return self._connect_to_only(dest)
        race = _Race(dest.port, self._source, self._freebind)
        try:
            sock = within(self.timeout, None, self._connect, dest, user, race)
            if sock is None:
                race.failures.append(ConnectTimeout(f"{dest}: no answer within {self.timeout:g} s"))
                raise race.most_telling_failure()
            return sock
        finally:
            race.close()

    def allowed_addresses(self, dest: Address, user: str | None = None) -> Sequence[IPAddress]:
        """The addresses of ``dest`` that the rules allow, in the resolver's order.

        A name that is denied is not looked up.  Raises Forbidden, which names the rule, if none
        is allowed, and what :meth:`Resolver.resolve` raises.  Without a bound in time.
        """
        decision = self._rules.before_resolving(dest, user)
        if decision.verdict is Verdict.DENY:
            raise Forbidden(f"{dest} is forbidden: {decision.reason}")
        addresses = self._resolver.resolve(dest.host)
        if decision.verdict is Verdict.ALLOW:
            return addresses
        decisions = [self._rules.for_ip(dest, ip, user) for ip in addresses]
        allowed = [
            ip
            for ip, decision in zip(addresses, decisions, strict=True)
            if decision.verdict is Verdict.ALLOW
        ]
        if not allowed:
            raise Forbidden(f"{dest} is forbidden: {decisions[0].reason}")
        return allowed

    def bind(self, sock: socket) -> bool:
        """Bind ``sock`` to the local address that connections are made from, and to any port.

        False if the kernel is to choose the address.  Raises ConnectFailed if no address of that
        family may be used, and OSError.
        """
        return _bind(sock, self._source, self._freebind)

    def _connect_to_only(self, dest: Address) -> socket:
        """Connect to a destination that is an address, which takes no race."""
        sock = _begin(dest.host, dest.port, self._source, self._freebind)
        try:
            if within(self.timeout, True, wait_write, sock.fileno()):
                raise ConnectTimeout(f"{dest}: no answer within {self.timeout:g} s")
            _raise_failure(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, dest: Address, user: str | None, race: _Race) -> socket:
        addresses = _interleave(self.allowed_addresses(dest, user), self._prefer)
        to_try = deque(addresses[: self.MAX_ADDRESSES])
        while to_try or race.under_way:
            if to_try and not race.start(to_try.popleft()):
                continue
            winner = race.wait(self.ATTEMPT_DELAY if to_try else None)
            if winner is not None:
                return winner
        raise race.most_telling_failure()


class _Race:
    """Attempts to connect to one port at several addresses; owns their sockets."""

    __slots__ = ("_freebind", "_port", "_source", "failures", "under_way")

    def __init__(self, port: int, source: Source | None, freebind: bool) -> None:
        self._port = port
        self._source = source
        self._freebind = freebind
        #: the attempts by descriptor, in the order of their start
        self.under_way: dict[int, socket] = {}
        #: what became of the other attempts
        self.failures: list[ConnectFailed] = []

    def start(self, ip: IPAddress) -> bool:
        """Begin to connect; False if that failed at once."""
        try:
            sock = _begin(str(ip), self._port, self._source, self._freebind)
        except ConnectFailed as failure:
            self.failures.append(failure)
            return False
        self.under_way[sock.fileno()] = sock
        return True

    def wait(self, seconds: float | None) -> socket | None:
        """The socket that has connected; None after a failure, or after ``seconds``."""
        for fd in self._decided(seconds):
            sock = self.under_way.pop(fd)
            try:
                _raise_failure(sock)
            except ConnectFailed as failure:
                sock.close()
                self.failures.append(failure)
            else:
                return sock
        return None

    def _decided(self, seconds: float | None) -> list[int]:
        """The attempts that have come to an end, the earliest first."""
        if len(self.under_way) == 1:  # nearly always, and 25 us less than by poll
            (fd,) = self.under_way
            if seconds is None:
                wait_write(fd)
                return [fd]
            return [] if within(seconds, True, wait_write, fd) else [fd]
        changes = poll()
        for fd in self.under_way:
            changes.register(fd, POLLOUT)
        writable = {fd for fd, _ in changes.poll(None if seconds is None else seconds * 1000)}
        return [fd for fd in self.under_way if fd in writable]

    def most_telling_failure(self) -> ConnectFailed:
        """Why nothing has connected; the first failure among equals."""
        return min(self.failures, key=_rank)

    def close(self) -> None:
        """Give up what is under way."""
        for sock in self.under_way.values():
            sock.close()
        self.under_way.clear()
        # The traceback of a raised failure holds this race; let the race not hold the failure.
        self.failures.clear()


def _begin(host: str, port: int, source: Source | None, freebind: bool) -> socket:
    """A socket that is about to be connected to an IP address.  Raises ConnectFailed."""
    family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
    try:
        sock = socket(family, std_socket.SOCK_STREAM)
    except OSError as error:
        raise connect_failure(error) from None
    try:
        tune(sock)
        if source is not None:
            # The port is chosen at connect, when the destination is known: else one source
            # address would have only its 28,000 ephemeral ports for all of the world.
            sock.setsockopt(std_socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            _bind(sock, source, freebind)
        sock.setblocking(False)
        sock.connect((host, port))
    except BlockingIOError:
        pass  # under way, as it should be
    except OSError as error:
        sock.close()
        raise connect_failure(error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _raise_failure(sock: socket) -> None:
    """Whether it has connected, once it is writable.  Raises ConnectFailed."""
    error = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
    if error:
        raise connect_failure(OSError(error, os.strerror(error)))
    sock.setblocking(True)


def _bind(sock: socket, source: Source | None, freebind: bool) -> bool:
    local = source(sock.family) if source is not None else None
    if local is None:
        return False
    if freebind:
        sock.setsockopt(std_socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.bind(local)
    return True


def _interleave(addresses: Sequence[IPAddress], first: int) -> list[IPAddress]:
    """The addresses with their families in turn, each in its own order (RFC 8305 section 4)."""
    preferred = [ip for ip in addresses if ip.version == first]
    others = [ip for ip in addresses if ip.version != first]
    return [ip for pair in zip_longest(preferred, others) for ip in pair if ip is not None]


def _rank(failure: ConnectFailed) -> int:
    for rank, kind in enumerate(_TELLING):
        if isinstance(failure, kind):
            return rank
    return len(_TELLING)
