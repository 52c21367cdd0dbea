"""What a client says first, and how it is answered.

Every protocol that clients speak comes in on the same port and is told by its first byte.  Each
ends in the same :class:`gsocks.request.Request` and in an :class:`Answer`, so that whoever serves
the request needn't know how it was asked.

SOCKS5 (RFC 1928) with or without user names (RFC 1929), SOCKS4 and SOCKS4a are spoken here, and
HTTP in :mod:`gsocks.http`: there one connection may ask many times.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import NamedTuple, Protocol

from gevent.socket import socket

from gsocks.address import UNSPECIFIED, Address, decode_name
from gsocks.errors import (
    AuthenticationFailed,
    BadAddress,
    BadRequest,
    ClientError,
    ClientGone,
    CommandNotSupported,
    GsocksError,
    Reply,
    StreamError,
)
from gsocks.login import Caller, Login
from gsocks.request import Command, Request
from gsocks.stream import Reader, send_all

#: the commands of a door that serves no others
CONNECT_ONLY = frozenset({Command.CONNECT})

_SOCKS5 = 0x05  # VER of RFC 1928 section 3
_NO_AUTHENTICATION = 0x00  # METHODs, the same section
_USERNAME_PASSWORD = 0x02
_NO_ACCEPTABLE_METHODS = 0xFF
_LOGIN = 0x01  # VER of RFC 1929 section 2
_LOGIN_SUCCEEDED = bytes((_LOGIN, 0x00))
_LOGIN_FAILED = bytes((_LOGIN, 0x01))

# Bytes taken along when the kernel has them already.  Some clients send greeting, login, request
# and a TLS ClientHello in one write; this is enough to receive them in one call.
_AHEAD = 4096

_SOCKS4 = 0x04  # VN of a SOCKS4 request
_SOCKS4_COMMANDS = frozenset({Command.CONNECT, Command.BIND})
_SOCKS4_GRANTED = 0x5A  # CD of a reply
_SOCKS4_REJECTED = 0x5B
#: bytes of a user id and of a name, neither of which tells its length ahead; Tor's bound too
_MAX_STRING = 512

# What a method may begin with: tchar of RFC 9110 section 5.6.2.
_HTTP_TOKEN = frozenset(
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

# What people point at the port by mistake.
_TLS_HANDSHAKE = 0x16  # RFC 8446 section 5.1


class Answer(Protocol):
    """How a request is answered in the protocol in which it was asked; once, in one write."""

    def succeeded(self, bound: Address, via: str) -> None:
        """The request is served, from ``bound`` as its true outbound address.

        ``via`` is the label of the exit that serves it, for protocols that can name it.  What the
        client reads next is the stream.  Raises StreamError if it is gone.
        """

    def failed(self, error: GsocksError) -> None:
        """The request is not served, because of ``error``.  Never raises.

        Close with :func:`gsocks.stream.close_after_reply`, so that the answer arrives.
        """


class SpeaksHttp(NamedTuple):
    """The client speaks HTTP; :class:`gsocks.http.client.Client` understands it from here on."""

    #: what it has said so far, from its first byte
    said: bytes


def negotiate(
    sock: socket,
    login: Login,
    commands: Collection[Command] = CONNECT_ONLY,
) -> tuple[Request, Answer] | SpeaksHttp:
    """Listen to a client until it has asked for something in SOCKS, or is known to speak HTTP.

    ``login`` decides who may come in; ``commands`` are those that this door serves.  The time that
    the client may take is the caller's to limit, by a gevent.Timeout around this call; so is the
    closing of ``sock``, by :func:`gsocks.stream.close_after_reply`.

    Raises a :class:`gsocks.errors.ClientError`, once the client has been told in its own
    protocol: BadRequest, BadAddress, AddressTypeNotSupported, CommandNotSupported,
    AuthenticationFailed, BadParameters; and ClientGone, if it has hung up.
    """
    reader = Reader(sock)
    try:
        version = reader.exactly(1, _AHEAD)[0]
        if version == _SOCKS5:
            return _socks5(sock, reader, login, commands)
        if version == _SOCKS4:
            return _socks4(sock, reader, login, commands)
    except StreamError as error:
        raise ClientGone(f"hung up before its request was whole: {error}") from None
    if version in _HTTP_TOKEN:
        return SpeaksHttp(bytes((version,)) + reader.take_rest())
    raise _stranger(version)


# --- SOCKS5: RFC 1928, and RFC 1929 where a user name is asked for --------------------------


def _socks5(
    sock: socket,
    reader: Reader,
    login: Login,
    commands: Collection[Command],
) -> tuple[Request, Answer]:
    caller = _agree_on_method(sock, reader, login)
    answer = _Socks5Answer(sock)
    try:
        command, dest = _read_request(reader, commands)
    except ClientError as error:  # the caller's HandshakeTimeout too
        answer.failed(error)
        raise
    return Request(command, dest, caller.user, reader.take_rest(), caller.wish), answer


def _agree_on_method(sock: socket, reader: Reader, login: Login) -> Caller:
    """The greeting, RFC 1928 section 3, behind its first byte; returns who the client is."""
    count = reader.exactly(1)[0]
    offered = reader.exactly(count)
    # At an open door too.  Only clients that were given credentials offer it, some of them nothing
    # else, and the user name may say which exit is wanted.
    if _USERNAME_PASSWORD in offered:
        send_all(sock, bytes((_SOCKS5, _USERNAME_PASSWORD)))
        return _log_in(sock, reader, login)
    if login.required or _NO_AUTHENTICATION not in offered:
        _last_words(sock, bytes((_SOCKS5, _NO_ACCEPTABLE_METHODS)))
        raise AuthenticationFailed("offers no method of authentication that this door takes")
    send_all(sock, bytes((_SOCKS5, _NO_AUTHENTICATION)))
    return login.unnamed()


def _log_in(sock: socket, reader: Reader, login: Login) -> Caller:
    """User name and password, RFC 1929 section 2."""
    version, length = reader.exactly(2, _AHEAD)
    if version != _LOGIN:
        _last_words(sock, _LOGIN_FAILED)
        raise BadRequest(f"login of version {version}, which RFC 1929 doesn't know")
    # Either may be empty: the RFC forbids it, clients send it, and the credentials decide.
    name = printable(reader.exactly(length))
    length = reader.exactly(1)[0]
    password = reader.exactly(length)
    try:
        caller = login.enter(name, password)
    except ClientError:  # HandshakeTimeout, too
        _last_words(sock, _LOGIN_FAILED)
        raise
    send_all(sock, _LOGIN_SUCCEEDED)
    return caller


def printable(name: bytes) -> str:
    """A user name as text that is fit for a log line.

    RFC 1929 gives it no encoding, and RFC 7617 leaves it open.  It is read as UTF-8; a byte that
    isn't, and a character that can't be printed, stand as their escapes (``\\xff``, ``\\n``).
    """
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _read_request(reader: Reader, commands: Collection[Command]) -> tuple[Command, Address]:
    """The request, RFC 1928 section 4.  Raises ClientError; RSV is not looked at.

    The address comes before the verdict on the command, so that no part of a request which is
    well formed is left unread behind its answer.
    """
    version, command, _reserved = reader.exactly(3, _AHEAD)
    if version != _SOCKS5:
        raise BadRequest(f"request of version {version} after a greeting of version 5")
    try:
        dest = Address.read(reader.exactly)
    except BadAddress:
        # Where the client will send its datagrams from: nobody is held to that (RFC 1928 section
        # 7), and PySocks says "0", which is neither an address nor a name.
        if command != Command.UDP_ASSOCIATE:
            raise
        dest = UNSPECIFIED
    if command not in commands:
        raise CommandNotSupported(f"command {command:#04x} is not served here")
    return Command(command), dest


class _Socks5Answer:
    """The replies of RFC 1928 section 6."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket) -> None:
        self._sock = sock

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        send_all(self._sock, _socks5_reply(Reply.SUCCEEDED, bound))

    def failed(self, error: GsocksError) -> None:
        _last_words(self._sock, _socks5_reply(error.reply, UNSPECIFIED))


def _socks5_reply(reply: Reply, bound: Address) -> bytes:
    return bytes((_SOCKS5, reply, 0x00)) + bound.encode()


# --- SOCKS4 and SOCKS4a, as NEC's papers and everybody's practice have them ------------------


def _socks4(
    sock: socket,
    reader: Reader,
    login: Login,
    commands: Collection[Command],
) -> tuple[Request, Answer]:
    answer = _Socks4Answer(sock)
    try:
        command, dest, caller = _read_socks4_request(reader, login, commands)
    except ClientError as error:  # the caller's HandshakeTimeout too
        answer.failed(error)
        raise
    return Request(command, dest, caller.user, reader.take_rest(), caller.wish), answer


def _read_socks4_request(
    reader: Reader, login: Login, commands: Collection[Command]
) -> tuple[Command, Address, Caller]:
    """The one message of a SOCKS4 client, behind its first byte.  Raises ClientError.

    As with SOCKS5, all of it is read before any of it is refused.
    """
    head = reader.exactly(7, _AHEAD)
    command, port, ip = head[0], int.from_bytes(head[1:3], "big"), head[3:]
    user_id = _read_string(reader, "user id")
    # SOCKS4a: an address that can't be one, 0.0.0.x, stands for the name that follows.
    named = ip[:3] == bytes(3) and ip[3] != 0
    name = _read_string(reader, "name") if named else b""
    if login.required:
        raise AuthenticationFailed("SOCKS4 has no passwords, and this door asks for one")
    caller = login.enter(printable(user_id), b"")
    if command not in commands or command not in _SOCKS4_COMMANDS:
        raise CommandNotSupported(f"command {command:#04x} is not served here")
    host = decode_name(name) if named else str(ipaddress.IPv4Address(ip))
    return Command(command), Address.of(host, port), caller


def _read_string(reader: Reader, what: str) -> bytes:
    """A string that ends with a NUL."""
    read = bytearray()
    while (byte := reader.exactly(1, _AHEAD)) != b"\0":
        if len(read) == _MAX_STRING:
            raise BadRequest(f"the {what} is longer than {_MAX_STRING} bytes")
        read += byte
    return bytes(read)


class _Socks4Answer:
    """The replies of SOCKS4.  Its codes for failures are about identd, so there is one for all."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket) -> None:
        self._sock = sock

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        send_all(self._sock, _socks4_reply(_SOCKS4_GRANTED, bound))

    def failed(self, error: GsocksError) -> None:  # noqa: ARG002
        _last_words(self._sock, _socks4_reply(_SOCKS4_REJECTED, UNSPECIFIED))


def _socks4_reply(code: int, bound: Address) -> bytes:
    ip = bound.ip
    if ip is None or ip.version != 4:  # it has no room for any other
        bound, ip = UNSPECIFIED, ipaddress.IPv4Address(0)
    return bytes((0x00, code)) + bound.port.to_bytes(2, "big") + ip.packed


# --- whatever else comes to the port --------------------------------------------------------


def _stranger(first: int) -> BadRequest:
    """Tells the door's owner what was probably meant; the client has no protocol to be told in."""
    if first == _TLS_HANDSHAKE:
        return BadRequest("looks like TLS: this port speaks SOCKS and HTTP, unencrypted")
    return BadRequest(f"begins with {first:#04x}, which is no protocol spoken on this port")


def _last_words(sock: socket, data: bytes) -> None:
    try:
        send_all(sock, data)
    except StreamError:
        pass  # the client is gone; there is nobody left to tell, and the cause is told anyway
