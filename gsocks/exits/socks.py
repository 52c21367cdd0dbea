"""Exits through SOCKS5 (RFC 1928, 1929), SOCKS4a and SOCKS4 proxies.

Names are sent to the proxy, which resolves them: no DNS query leaves this machine.  Only SOCKS4
knows no names, and gets an address that was resolved here.

Nothing is sent ahead of the answer that it depends on.  It would save round trips, but proxies that
take one recv for one message are common (microsocks#105), and hang if two arrive at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from socket import inet_ntoa

from gsocks.address import ATYP_IPV4, UNSPECIFIED, Address, IPAddress
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    AddressFamilyNotSupported,
    AddressTypeNotSupported,
    BadAddress,
    CommandNotSupported,
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    ExitDoubtful,
    ExitFailed,
    Forbidden,
    GsocksError,
    HostUnreachable,
    LimitReached,
    NameNotFound,
    NetworkUnreachable,
    OutOfResources,
    StreamError,
)
from gsocks.exits.base import Associates, Connected, Exit
from gsocks.exits.credentials import Credentials, Filled
from gsocks.exits.handshake import Opening
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import Progress, ProxyAttempt
from gsocks.exits.socks_udp import ProxiedDatagrams, ProxiedListener
from gsocks.request import BIND, CONNECT, RESOLVE_PTR, UDP_ASSOCIATE, Command, Request
from gsocks.stream import Stream

_HTTP = ord("H")  # how an HTTP server's answer to anything begins


# --- SOCKS5 ---------------------------------------------------------------------------------

_VERSION = 0x05  # VER of RFC 1928 section 3
_NO_AUTHENTICATION = 0x00  # METHODs, the same section
_USERNAME_PASSWORD = 0x02
_LOGIN_VERSION = 0x01  # VER of RFC 1929 section 2

# REP of RFC 1928 section 6, as far as it concerns the destination.  Command not supported (07) is
# the proxy's failure.  General failure (01) and codes unknown to the RFC are unclear: some proxies
# have no other reply for a refused connection.  So is 08 for a name, which has no address family:
# hev-socks5-server says so of a name that does not exist.
_COMMAND_NOT_SUPPORTED = 0x07
_ADDRESS_TYPE_NOT_SUPPORTED = 0x08
_FAILURES: dict[int, tuple[type[ConnectFailed], str]] = {
    0x02: (Forbidden, "forbidden by the proxy's rules"),
    0x03: (NetworkUnreachable, "network unreachable"),
    0x04: (HostUnreachable, "host unreachable"),
    0x05: (ConnectionRefused, "connection refused"),
    0x06: (ConnectTimeout, "no answer in time"),
    _ADDRESS_TYPE_NOT_SUPPORTED: (
        AddressFamilyNotSupported,
        "the proxy doesn't support its address family",
    ),
}


class Socks5Exit(ProxyExit):
    """A SOCKS5 proxy.

    With ``credentials`` only the method user name and password is offered: a proxy that chose no
    authentication would ignore what providers encode in user names (sessions, countries).
    """

    __slots__ = ()

    def _attempt(
        self, request: Request, done: Callable[[Connected | GsocksError], None]
    ) -> ProxyAttempt:
        login = self._login(request)
        return _Socks5Attempt(self, request.dest, login, done, self._timeout, self._reach_timeout)

    def _greet(self, stream: Stream, login: Filled | None) -> Stream:
        stream = self._secured(stream)
        opening = Opening(stream)
        self._in_time(_greet, stream, opening, login)
        return opening.rest()

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:  # noqa: ARG002
        opening = Opening(stream)
        stream.write(_CONNECT + dest.encode())
        bound = _read_reply(opening, dest)
        return Connected(opening.rest(), bound)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        if self._tls is not None:
            raise CommandNotSupported(f"{self.label}: its datagrams would not be in its TLS")
        through = self._through
        if not isinstance(through, Associates):
            raise CommandNotSupported(f"{self.label}: what leads there carries no datagrams")
        stream, _, relay = self._within(partial(self._command, UDP_ASSOCIATE, UNSPECIFIED), request)
        # "here", or a name that means nothing elsewhere
        host = self._proxy.host if relay.is_unspecified else relay.host
        nearer = Request(UDP_ASSOCIATE, UNSPECIFIED, request.user, selector=request.selector)
        try:
            if not relay.port:
                raise ExitFailed("the proxy relays datagrams at no port")
            datagrams = through.associate(nearer).stream
        except BaseException as error:
            stream.abort()
            if isinstance(error, CommandNotSupported | LimitReached | OutOfResources):
                raise
            if isinstance(error, GsocksError):
                raise ExitFailed(f"{self.label}: {error}") from None
            raise
        made = ProxiedDatagrams(stream, datagrams, Address(host, relay.port))
        return Connected(made, UNSPECIFIED)

    def bind(self, request: Request) -> ProxiedListener:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        dest = request.dest
        stream, opening, bound = self._within(partial(self._command, BIND, dest), request)
        if bound.is_unspecified and self._proxy.ip is not None:
            bound = Address(self._proxy.host, bound.port)
        return ProxiedListener(stream, opening, bound, partial(_read_reply, dest=dest), self.label)

    def _command(
        self, command: Command, dest: Address, request: Request, progress: Progress
    ) -> tuple[Stream, Opening, Address]:
        """Ask for what not every proxy serves; the connection, and the address in the reply."""
        login = self._login(request)
        stream = self._reach(request)
        try:
            greeted = self._greet(stream, login)
            progress.asked = True
            opening = Opening(greeted)
            greeted.write(bytes((_VERSION, command, 0x00)) + dest.encode())
            return greeted, opening, _read_reply_to_command(opening, dest, command)
        except (StreamError, ConnectFailed) as error:
            stream.abort()
            raise self.broken(error, progress) from None
        except BaseException:  # not served, timed out or killed
            stream.abort()
            raise

    def look_up(self, request: Request) -> Address:
        """See :meth:`gsocks.exits.base.LooksUp.look_up`; Tor can, and what has its extensions."""
        return self._within(self._look_up, request)

    def _look_up(self, request: Request, progress: Progress) -> Address:
        login = self._login(request)
        stream = self._reach(request)
        try:
            greeted = self._greet(stream, login)
            progress.asked = True
            return _ask_to_look_up(greeted, request)
        except (StreamError, ConnectFailed) as error:
            raise self.broken(error, progress) from None
        finally:
            stream.abort()


def _ask_to_look_up(stream: Stream, request: Request) -> Address:
    dest = request.dest._replace(port=0)
    opening = Opening(stream)
    stream.write(bytes((_VERSION, request.command, 0x00)) + dest.encode())
    try:
        version, reply = opening.exactly(2, "its reply")
    except StreamError:  # as many do instead of saying so
        reply = _COMMAND_NOT_SUPPORTED
    else:
        _expect(version, _VERSION)
    if reply == _COMMAND_NOT_SUPPORTED:
        raise CommandNotSupported("the proxy looks nothing up")
    if reply:
        raise _failure(reply, dest)
    opening.exactly(1, "its reply")  # RSV
    try:
        found = Address.read(lambda count: opening.exactly(count, "its reply"))
    except (BadAddress, AddressTypeNotSupported) as error:
        raise NameNotFound(f"{dest.host}: the proxy's reply has {error}") from None
    # else it has taken the command for CONNECT
    is_answer = (found.ip is None) is (request.command is RESOLVE_PTR)
    if found.port or found.is_unspecified or not is_answer:
        raise CommandNotSupported("the proxy connects instead of looking anything up")
    return found


_CONNECT = bytes((_VERSION, Command.CONNECT, 0x00))


class _Socks5Attempt(ProxyAttempt):
    """Greeting, login and request by the hub."""

    asks_first = False

    __slots__ = ()

    def speak(self) -> None:
        self.say(_greeting(_NO_AUTHENTICATION if self.login is None else _USERNAME_PASSWORD))

    def understand(self, received: bytes) -> None:
        login = self.login
        length = 2 if login is None else 4  # of what answers the greeting, and the login
        if self.asked:
            self._understand_reply(received, length)
        elif login is not None and received == _WANTS_LOGIN:
            self.say(_login_message(login))
        elif received == _WANTS_NOTHING and login is None:
            self.ask(_CONNECT + self.target.encode())
        elif login is not None and len(received) == length and received[:2] == _WANTS_LOGIN:
            self._understand_status(received[3])
        else:
            self.go_on()

    def _understand_status(self, status: int) -> None:
        if status:
            self.go_on()
        else:
            self.ask(_CONNECT + self.target.encode())

    def _understand_reply(self, received: bytes, at: int) -> None:
        end = at + 10
        if len(received) < end or received[at : at + 4] != _SUCCEEDED_IPV4:
            self.go_on()
            return
        port = int.from_bytes(received[end - 2 : end], "big")
        self.succeeded(Address(inet_ntoa(received[at + 4 : end - 2]), port), received[end:])


_WANTS_NOTHING = bytes((_VERSION, _NO_AUTHENTICATION))
_WANTS_LOGIN = bytes((_VERSION, _USERNAME_PASSWORD))
_SUCCEEDED_IPV4 = bytes((_VERSION, 0x00, 0x00, ATYP_IPV4))


def _greet(stream: Stream, opening: Opening, login: Filled | None) -> None:
    """Agree on a method, and log in if there is a ``login``."""
    if login is None:
        _agree(stream, opening, _NO_AUTHENTICATION)
    else:
        _agree(stream, opening, _USERNAME_PASSWORD)
        _log_in(stream, opening, login)


def _agree(stream: Stream, opening: Opening, method: int) -> None:
    """Agree on a method, RFC 1928 section 3."""
    stream.write(_greeting(method))
    version, chosen = opening.exactly(2, "its answer to the greeting")
    _expect(version, _VERSION)
    if chosen != method:
        wants = "wants a" if method == _NO_AUTHENTICATION else "takes no"
        raise ExitFailed(f"the proxy {wants} user name and password (it chose {chosen:#04x})")


def _greeting(method: int) -> bytes:
    return bytes((_VERSION, 1, method))


def _log_in(stream: Stream, opening: Opening, login: Filled) -> None:
    """User name and password, RFC 1929 section 2."""
    stream.write(_login_message(login))
    # the version is ignored: some proxies answer 5
    _, status = opening.exactly(2, "its answer to the login")
    if status:
        raise ExitFailed("the proxy refuses this user name and password")


def _login_message(login: Filled) -> bytes:
    name, secret = login.user.encode(), login.password.encode()
    return bytes((_LOGIN_VERSION, len(name))) + name + bytes((len(secret),)) + secret  # < 256


def _failure(reply: int, dest: Address) -> ConnectFailed:
    if reply in _FAILURES and not (reply == _ADDRESS_TYPE_NOT_SUPPORTED and dest.ip is None):
        kind, words = _FAILURES[reply]
        return kind(f"{dest}: {words}")
    kind = ExitFailed if reply == _COMMAND_NOT_SUPPORTED else ExitDoubtful
    return kind(f"{dest}: the proxy failed (reply {reply:#04x})")


def _read_reply(opening: Opening, dest: Address) -> Address:
    """The bound address of a reply.  Raises ConnectFailed if that is a failure, StreamError."""
    version, reply = opening.exactly(2, "its reply")
    _expect(version, _VERSION)
    if reply:  # the rest has no more information, and is not always sent
        raise _failure(reply, dest)
    opening.exactly(1, "its reply")  # RSV
    return _read_bound(opening)


def _read_reply_to_command(opening: Opening, dest: Address, command: Command) -> Address:
    """The same for a command that not every proxy serves.  Raises CommandNotSupported, too."""
    try:
        version, reply = opening.exactly(2, "its reply")
    except StreamError:  # as many do instead of saying so
        reply = _COMMAND_NOT_SUPPORTED
    else:
        _expect(version, _VERSION)
    if reply == _COMMAND_NOT_SUPPORTED:
        raise CommandNotSupported(f"the proxy does not serve {command.name}")
    if reply:
        raise _failure(reply, dest)
    opening.exactly(1, "its reply")  # RSV
    return _read_bound(opening)


def _read_bound(opening: Opening) -> Address:
    """The bound address; unspecified if the proxy reports none or an invalid one."""
    try:
        bound = Address.read(lambda count: opening.exactly(count, "its reply"))
    except BadAddress:  # an empty name, in most cases
        return UNSPECIFIED
    except AddressTypeNotSupported as error:  # the end of such a reply is unknown
        raise ExitFailed(f"the proxy's reply has {error}") from None
    return bound if bound.ip is not None else UNSPECIFIED


def _expect(version: int, expected: int) -> None:
    if version != expected:
        hint = ": probably an HTTP proxy" if version == _HTTP else ""
        raise ExitFailed(f"the answer begins with {version:#04x}, which is not SOCKS{hint}")


# --- SOCKS4a --------------------------------------------------------------------------------

_VERSION_4 = 0x04
_REPLY_VERSION_4 = 0x00
_GRANTED = 0x5A
_REJECTED_OR_FAILED = 0x5B
_NAME_FOLLOWS = bytes((0, 0, 0, 1))  # 0.0.0.x with x not 0


class Socks4aExit(ProxyExit):
    """A SOCKS4a proxy: it accepts IPv4 addresses and names, and a user name without a password."""

    __slots__ = ()

    def _attempt(
        self, request: Request, done: Callable[[Connected | GsocksError], None]
    ) -> ProxyAttempt | None:
        ip = request.dest.ip
        if ip is not None and ip.version == 6:  # which has to fail
            return None
        login = self._login(request)
        return _Socks4aAttempt(self, request.dest, login, done, self._timeout, self._reach_timeout)

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        stream.write(_socks4a_request(dest, "" if login is None else login.user))
        opening = Opening(stream)
        bound = _read_reply_of_4(opening, dest)
        return Connected(opening.rest(), bound)

    def bind(self, request: Request) -> ProxiedListener:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        dest = request.dest
        stream, opening, bound = self._within(self._begin_bind, request)
        if bound.is_unspecified and self._proxy.ip is not None:  # as the memo of SOCKS4 has it
            bound = Address(self._proxy.host, bound.port)
        next_reply = partial(_read_reply_of_4, dest=dest)
        return ProxiedListener(stream, opening, bound, next_reply, self.label)

    def _begin_bind(self, request: Request, progress: Progress) -> tuple[Stream, Opening, Address]:
        """Ask for a port; the connection, and the port's address in the first reply."""
        login, dest = self._login(request), request.dest
        asked = _socks4a_request(dest, "" if login is None else login.user, BIND)
        stream = self._reach(request)
        try:
            greeted = self._greet(stream, login)
            progress.asked = True
            opening = Opening(greeted)
            greeted.write(asked)
            return greeted, opening, _read_reply_to_bind(opening, dest)
        except (StreamError, ConnectFailed) as error:
            stream.abort()
            raise self.broken(error, progress) from None
        except BaseException:  # not served, timed out or killed
            stream.abort()
            raise


class _Socks4aAttempt(ProxyAttempt):
    """The request by the hub."""

    __slots__ = ()

    def speak(self) -> None:
        self.ask(_socks4a_request(self.target, "" if self.login is None else self.login.user))

    def understand(self, received: bytes) -> None:
        if len(received) < 8 or received[:2] != _GRANTED_4:
            self.go_on()
        else:
            self.succeeded(_bound_of_4(received[2:8]), received[8:])


_GRANTED_4 = bytes((_REPLY_VERSION_4, _GRANTED))


def _bound_of_4(raw: bytes) -> Address:
    return Address(inet_ntoa(raw[2:]), int.from_bytes(raw[:2], "big"))


def _read_reply_of_4(opening: Opening, dest: Address) -> Address:
    """The bound address of a reply.  Raises ConnectFailed if that is a failure, StreamError."""
    version, reply = opening.exactly(2, "its reply")
    _expect(version, _REPLY_VERSION_4)
    if reply != _GRANTED:
        # SOCKS4 has one code for all causes behind the proxy
        kind = ExitDoubtful if reply == _REJECTED_OR_FAILED else ExitFailed
        raise kind(f"{dest}: the proxy rejected it or failed (reply {reply:#04x})")
    return _bound_of_4(opening.exactly(6, "its reply"))


def _read_reply_to_bind(opening: Opening, dest: Address) -> Address:
    """The same of the first reply to BIND, which many proxies don't serve: they reject it, by the
    only code there is, or hang up.  Raises CommandNotSupported, too.
    """
    try:
        return _read_reply_of_4(opening, dest)
    except (ExitDoubtful, StreamError):
        raise CommandNotSupported("the proxy does not serve BIND, or rejects it") from None


def _socks4a_request(dest: Address, user: str, command: Command = CONNECT) -> bytes:
    ip = dest.ip
    if ip is not None and ip.version == 6:
        raise AddressFamilyNotSupported(f"{dest}: SOCKS4a has no IPv6 addresses, only names")
    name = b"" if ip is not None else dest.host.encode("ascii") + b"\0"
    return (
        bytes((_VERSION_4, command))
        + dest.port.to_bytes(2, "big")
        + (_NAME_FOLLOWS if ip is None else ip.packed)
        + user.encode()
        + b"\0"
        + name
    )


# --- SOCKS4 ---------------------------------------------------------------------------------


class Socks4Exit(Socks4aExit):
    """A SOCKS4 proxy, which is given the IPv4 address that a name has here.

    ``addresses``: those of a destination that a user may reach, as
    :meth:`gsocks.net.dial.Dialer.allowed_addresses` finds them.  A name that has none is sent as in
    SOCKS4a, which many such proxies understand; if the proxy refuses it, the reason is that it was
    not found.
    """

    __slots__ = ("_addresses",)

    def __init__(
        self,
        proxy: Address,
        through: Exit,
        addresses: Callable[[Address, str | None, str], Sequence[IPAddress]],
        *,
        label: str,
        credentials: Credentials | None = None,
        timeout: float = 10.0,
        reach_timeout: float = 3.0,
    ) -> None:
        super().__init__(
            proxy,
            through,
            label=label,
            credentials=credentials,
            timeout=timeout,
            reach_timeout=reach_timeout,
        )
        self._addresses = addresses

    def _attempt(
        self,
        request: Request,
        done: Callable[[Connected | GsocksError], None],
    ) -> None:
        """A name has to be looked up first."""

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        try:
            resolved = self._resolved(request)
        except (NameNotFound, HostUnreachable) as failure:
            try:
                return super().connect(request)
            except ExitDoubtful:
                raise failure from None
        return super().connect(resolved)

    def bind(self, request: Request) -> ProxiedListener:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        if request.dest.is_unspecified:  # any peer
            return super().bind(request)
        return super().bind(self._resolved(request))

    def _resolved(self, request: Request) -> Request:
        """``request`` for an IPv4 address of its destination.

        Raises ConnectFailed: HostUnreachable if its name is not resolved in time, and what
        ``addresses`` raises.
        """
        dest = request.dest
        found = call_with_timeout(
            self._reach_timeout,
            self._addresses,
            dest,
            request.user,
            request.client,
            on_timeout=None,
        )
        if found is None:
            raise HostUnreachable(f"{dest}: not resolved within {self._reach_timeout:g} s")
        ip = next((ip for ip in found if ip.version == 4), None)
        if ip is None:
            raise AddressFamilyNotSupported(f"{dest}: SOCKS4 has IPv4 addresses only")
        return request._replace(dest=Address(str(ip), dest.port))
