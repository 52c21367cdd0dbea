"""The negotiation with a client, up to its request.

All protocols of clients share one port and are detected by the first byte.  Each results in a
:class:`gsocks.request.Request` and an :class:`Answer`, so that the listener needn't know the
client's protocol.

SOCKS5 (RFC 1928) with or without user names (RFC 1929), SOCKS4 and SOCKS4a are in this module, with
the look-ups of Tor's SOCKS extensions; HTTP is in :mod:`gsocks.http`, because one connection may
carry many requests there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import NamedTuple, Protocol

from gsocks.access.login import Authenticator, Identity
from gsocks.address import ATYP_IPV4, UNSPECIFIED, Address, decode_name
from gsocks.errors import (
    AddressFamilyNotSupported,
    AuthenticationFailed,
    BadAddress,
    BadRequest,
    ClientError,
    ClientGone,
    CommandNotSupported,
    ConnectedOnly,
    GsocksError,
    Reply,
    StreamError,
)
from gsocks.http.token import TCHARS
from gsocks.request import RESOLVE, RESOLVE_PTR, Command, Request
from gsocks.sock import AnySocket
from gsocks.stream import Reader, send_all

#: the commands of a listener that serves only CONNECT
CONNECT_ONLY = frozenset({Command.CONNECT})

_SOCKS5 = 0x05  # VER of RFC 1928 section 3
_NO_AUTHENTICATION = 0x00  # METHODs, the same section
_USERNAME_PASSWORD = 0x02
_NO_ACCEPTABLE_METHODS = 0xFF
_LOGIN = 0x01  # VER of RFC 1929 section 2
_LOGIN_SUCCEEDED = bytes((_LOGIN, 0x00))
_LOGIN_FAILED = bytes((_LOGIN, 0x01))

# Bytes that are read ahead if the kernel has them.  Some clients send greeting, login, request and
# a TLS ClientHello in one write; this is enough to receive them in one call.
_AHEAD = 4096

_SOCKS4 = 0x04  # VN of a SOCKS4 request
_SOCKS4_COMMANDS = frozenset({Command.CONNECT, Command.BIND, RESOLVE})
_SOCKS4_GRANTED = 0x5A  # CD of a reply
_SOCKS4_REJECTED = 0x5B
#: bytes of a user id and of a name, which are sent without their length; Tor has the same bound
_MAX_STRING = 512

# The bytes that an HTTP request may begin with: its method is a token.
_HTTP_FIRST_BYTES = frozenset(TCHARS.encode("ascii"))

# Sent to the port by mistake.
_TLS_HANDSHAKE = 0x16  # RFC 8446 section 5.1


class Answer(Protocol):
    """Answers a request in the client's protocol; once, in one write."""

    @property
    def protocol(self) -> str:
        """What the client speaks, for the log."""

    def succeeded(self, bound: Address, via: str) -> None:
        """Report success; ``bound`` is the true outbound address, or what was looked up.

        ``via`` is the label of the exit that serves it, for protocols that can name it.  The
        stream follows.  Raises StreamError if the client has disconnected, and
        AddressFamilyNotSupported if what was looked up has no place in a reply.
        """

    def failed(self, error: GsocksError) -> None:
        """Report ``error``.  Never raises.

        Close with :func:`gsocks.stream.close_after_reply`, so that the answer arrives.
        """


class SpeaksHttp(NamedTuple):
    """The client speaks HTTP; :class:`gsocks.inbound.http_client.Client` reads on from here."""

    #: the bytes that were read, from the first one
    said: bytes


def negotiate(
    sock: AnySocket,
    login: Authenticator,
    commands: Collection[Command] = CONNECT_ONLY,
    received: bytes = b"",
    greeted: bool = False,
) -> tuple[Request, Answer] | SpeaksHttp:
    """Negotiate with a client until it has sent a SOCKS request, or is known to speak HTTP.

    ``login`` authenticates the client; ``commands`` are those that the listener serves.  The caller
    bounds the time by a gevent.Timeout around this call, and closes ``sock``, by
    :func:`gsocks.stream.close_after_reply`.

    ``received``: bytes that were received already; ``greeted``: they come behind a
    :func:`plain_greeting`, which was answered.

    Raises a :class:`gsocks.errors.ClientError`, after reporting it to the client in its own
    protocol: BadRequest, BadAddress, AddressTypeNotSupported, CommandNotSupported,
    AuthenticationFailed, BadParameters; and ClientGone, if the client has disconnected.
    """
    reader = Reader(sock, received)
    try:
        if greeted:
            return _socks5_request(sock, reader, login.anonymous(), commands)
        version = reader.exactly(1, _AHEAD)[0]
    except StreamError as error:
        raise disconnected(error, has_spoken=greeted) from None
    try:
        if version == _SOCKS5:
            identity = _agree_on_method(sock, reader, login)
            return _socks5_request(sock, reader, identity, commands)
        if version == _SOCKS4:
            return _socks4(sock, reader, login, commands)
    except StreamError as error:
        raise disconnected(error, has_spoken=True) from None
    if version in _HTTP_FIRST_BYTES:
        return SpeaksHttp(bytes((version,)) + reader.take_rest())
    raise _unknown_protocol(version)


def disconnected(error: StreamError, *, has_spoken: bool) -> ClientGone:
    """Why there is no request of a client whose connection has ended or broken.

    ``has_spoken``: whether it has sent anything.
    """
    kind = ClientGone if has_spoken else ConnectedOnly
    return kind(f"disconnected before its request was complete: {error}")


# --- SOCKS5: RFC 1928, and RFC 1929 for user names ------------------------------------------

#: what nearly all clients without a login send first
PLAIN_GREETING = bytes((_SOCKS5, 1, _NO_AUTHENTICATION))
#: the answer to a :func:`plain_greeting`
NO_AUTHENTICATION = bytes((_SOCKS5, _NO_AUTHENTICATION))


def plain_greeting(received: bytes, prefers_login: bool) -> int:
    """The length of the greeting in ``received``, if it is complete and lets its client in without
    a login; else 0.

    Such a client is anonymous, where that is allowed.  ``prefers_login``: see
    :class:`gsocks.access.login.Authenticator`.
    """
    if len(received) < 3 or received[0] != _SOCKS5:
        return 0
    end = 2 + received[1]
    if len(received) < end or not _is_anonymous(received[2:end], prefers_login):
        return 0
    return end


def _is_anonymous(offered: bytes, prefers_login: bool) -> bool:
    """Whether a client that offers these methods gives no name, where none is required.

    Many offer a login besides none and have none: Java, Emacs, connect-proxy, tsocks and dante's
    socksify always do.  When it is taken they ask a human, wait for ever, fail, or send the name of
    the user of their machine.  Others (curl, Go, apt, Netty) offer the same with a login that they
    were given, and whose name may carry an exit selector.  So it is taken where that could make a
    difference.  A client that offers nothing but a login has one.
    """
    if _NO_AUTHENTICATION not in offered:
        return False
    return not prefers_login or _USERNAME_PASSWORD not in offered


def plain_connect(received: bytes) -> tuple[Address, bytes] | None:
    """The destination of the CONNECT request in ``received``, and the bytes behind the request.

    None: it is another one, is not complete or is invalid, which is for :func:`negotiate` to tell.
    """
    if received[:3] != _CONNECT or len(received) == len(_CONNECT):
        return None
    if received[3] == ATYP_IPV4 and len(received) >= _IPV4_REQUEST:
        return Address.of_ipv4(received[4:_IPV4_REQUEST]), received[_IPV4_REQUEST:]
    reader = _Received(received, len(_CONNECT))
    try:
        dest = Address.read(reader.exactly)
    except (_Incomplete, ClientError):
        return None
    return dest, received[reader.at :]


_CONNECT = bytes((_SOCKS5, Command.CONNECT, 0x00))
#: bytes of a request to an IPv4 address
_IPV4_REQUEST = 10


class _Incomplete(Exception):
    """More has to be received."""


class _Received:
    """Reads from bytes."""

    __slots__ = ("_bytes", "at")

    def __init__(self, received: bytes, at: int) -> None:
        self._bytes = received
        self.at = at

    def exactly(self, count: int) -> bytes:
        """The next ``count`` bytes.  Raises _Incomplete."""
        self.at += count
        if self.at > len(self._bytes):
            raise _Incomplete
        return self._bytes[self.at - count : self.at]


def _socks5_request(
    sock: AnySocket,
    reader: Reader,
    identity: Identity,
    commands: Collection[Command],
) -> tuple[Request, Answer]:
    answer = Socks5Answer(sock)
    try:
        command, dest = _read_request(reader, commands)
    except ClientError as error:  # the caller's HandshakeTimeout too
        answer.failed(error)
        raise
    return Request(command, dest, identity.user, reader.take_rest(), identity.selector), answer


def _agree_on_method(sock: AnySocket, reader: Reader, login: Authenticator) -> Identity:
    """The greeting, RFC 1928 section 3, behind its first byte; returns the client's identity."""
    count = reader.exactly(1)[0]
    offered = reader.exactly(count)
    if not login.required and _is_anonymous(offered, login.prefers_login):
        send_all(sock, NO_AUTHENTICATION)
        return login.anonymous()
    if _USERNAME_PASSWORD in offered:
        send_all(sock, bytes((_SOCKS5, _USERNAME_PASSWORD)))
        return _log_in(sock, reader, login)
    _send_last(sock, bytes((_SOCKS5, _NO_ACCEPTABLE_METHODS)))
    raise AuthenticationFailed("offers no method of authentication that this listener accepts")


def _log_in(sock: AnySocket, reader: Reader, login: Authenticator) -> Identity:
    """User name and password, RFC 1929 section 2."""
    version, length = reader.exactly(2, _AHEAD)
    if version != _LOGIN:
        _send_last(sock, _LOGIN_FAILED)
        raise BadRequest(f"login of version {version}, which RFC 1929 doesn't define")
    # Either may be empty: the RFC forbids that, but clients send it, and it may be right.
    name = printable(reader.exactly(length))
    length = reader.exactly(1)[0]
    password = reader.exactly(length)
    try:
        identity = login.authenticate(name, password)
    except ClientError:  # HandshakeTimeout, too
        _send_last(sock, _LOGIN_FAILED)
        raise
    send_all(sock, _LOGIN_SUCCEEDED)
    return identity


def printable(name: bytes) -> str:
    """A user name as printable text.

    RFC 1929 defines no encoding, and RFC 7617 leaves it open.  The name is decoded as UTF-8; an
    invalid byte and a character that can't be printed become their escapes (``\\xff``, ``\\n``).
    """
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _read_request(reader: Reader, commands: Collection[Command]) -> tuple[Command, Address]:
    """The request, RFC 1928 section 4.  Raises ClientError; RSV is ignored.

    The address is read before the command is checked, so that no part of a well-formed request
    remains unread when it is answered.
    """
    version, command, _reserved = reader.exactly(3, _AHEAD)
    if version != _SOCKS5:
        raise BadRequest(f"request of version {version} after a greeting of version 5")
    try:
        dest = Address.read(reader.exactly)
    except BadAddress:
        # The address from which the client will send datagrams, which is not binding (RFC 1928
        # section 7); PySocks sends "0", which is neither an address nor a name.
        if command != Command.UDP_ASSOCIATE:
            raise
        dest = UNSPECIFIED
    if command not in commands:
        raise CommandNotSupported(f"command {command:#04x} is not served here")
    if command == RESOLVE_PTR and dest.ip is None:
        raise BadAddress(f"{dest.host!r} is not an address, whose name could be looked up")
    return Command(command), dest


class Socks5Answer:
    """The replies of RFC 1928 section 6."""

    __slots__ = ("_sock",)
    protocol = "SOCKS5"

    def __init__(self, sock: AnySocket) -> None:
        self._sock = sock

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        send_all(self._sock, socks5_success(bound))

    def failed(self, error: GsocksError) -> None:
        _send_last(self._sock, _socks5_reply(error.reply, UNSPECIFIED))


def socks5_success(bound: Address) -> bytes:
    """The reply of :meth:`Answer.succeeded`."""
    return _SUCCEEDED + bound.encode()


_SUCCEEDED = bytes((_SOCKS5, Reply.SUCCEEDED, 0x00))


def _socks5_reply(reply: Reply, bound: Address) -> bytes:
    return bytes((_SOCKS5, reply, 0x00)) + bound.encode()


# --- SOCKS4 and SOCKS4a, as NEC's papers and the common programs have them -------------------


def _socks4(
    sock: AnySocket,
    reader: Reader,
    login: Authenticator,
    commands: Collection[Command],
) -> tuple[Request, Answer]:
    answer = _Socks4Answer(sock)
    try:
        command, dest, identity = _read_socks4_request(reader, login, commands)
    except ClientError as error:  # the caller's HandshakeTimeout too
        answer.failed(error)
        raise
    if command is RESOLVE:
        answer = _Socks4LookUpAnswer(sock)
    return Request(command, dest, identity.user, reader.take_rest(), identity.selector), answer


def _read_socks4_request(
    reader: Reader, login: Authenticator, commands: Collection[Command]
) -> tuple[Command, Address, Identity]:
    """The only message of a SOCKS4 client, behind its first byte.  Raises ClientError.

    As with SOCKS5, it is read completely before it is refused.
    """
    head = reader.exactly(7, _AHEAD)
    command, port, ip = head[0], int.from_bytes(head[1:3], "big"), head[3:]
    user_id = _read_string(reader, "user id")
    # SOCKS4a: the invalid address 0.0.0.x means that a name follows.
    named = ip[:3] == bytes(3) and ip[3] != 0
    name = _read_string(reader, "name") if named else b""
    if login.required:
        raise AuthenticationFailed("SOCKS4 has no passwords, and this listener requires one")
    identity = login.authenticate(printable(user_id), b"")
    if command not in commands or command not in _SOCKS4_COMMANDS:
        raise CommandNotSupported(f"command {command:#04x} is not served here")
    host = decode_name(name) if named else str(ipaddress.IPv4Address(ip))
    return Command(command), Address.of(host, port), identity


def _read_string(reader: Reader, what: str) -> bytes:
    """A string that ends with a NUL."""
    read = bytearray()
    while (byte := reader.exactly(1, _AHEAD)) != b"\0":
        if len(read) == _MAX_STRING:
            raise BadRequest(f"the {what} is longer than {_MAX_STRING} bytes")
        read += byte
    return bytes(read)


class _Socks4Answer:
    """The replies of SOCKS4; one code for all failures, since the others are about identd."""

    __slots__ = ("_sock",)
    protocol = "SOCKS4"

    def __init__(self, sock: AnySocket) -> None:
        self._sock = sock

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        send_all(self._sock, _socks4_reply(_SOCKS4_GRANTED, bound))

    def failed(self, error: GsocksError) -> None:  # noqa: ARG002
        _send_last(self._sock, _socks4_reply(_SOCKS4_REJECTED, UNSPECIFIED))


class _Socks4LookUpAnswer(_Socks4Answer):
    """The replies to RESOLVE, of which the address is all that the client wants."""

    __slots__ = ()

    def succeeded(self, bound: Address, via: str) -> None:
        if bound.ip is None or bound.ip.version != 4:
            raise AddressFamilyNotSupported(
                f"{bound.host}: SOCKS4 replies have IPv4 addresses only"
            )
        super().succeeded(bound, via)


def _socks4_reply(code: int, bound: Address) -> bytes:
    ip = bound.ip
    if ip is None or ip.version != 4:  # SOCKS4 replies have IPv4 addresses only
        bound, ip = UNSPECIFIED, ipaddress.IPv4Address(0)
    return bytes((0x00, code)) + bound.port.to_bytes(2, "big") + ip.packed


# --- other protocols ------------------------------------------------------------------------


def _unknown_protocol(first: int) -> BadRequest:
    """An error for the log, with the probable mistake; the client has no protocol for an answer."""
    if first == _TLS_HANDSHAKE:
        return BadRequest("looks like TLS: this port speaks SOCKS and HTTP, unencrypted")
    return BadRequest(f"begins with {first:#04x}, which is no protocol of this port")


def _send_last(sock: AnySocket, data: bytes) -> None:
    try:
        send_all(sock, data)
    except StreamError:
        pass  # the client has disconnected; the cause of the failure is raised anyway
