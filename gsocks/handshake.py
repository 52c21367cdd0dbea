"""What a client says first, and how it is answered.

Every protocol that clients speak comes in on the same port and is told by its first byte.  Each
ends in the same :class:`gsocks.request.Request` and in an :class:`Answer`, so that whoever serves
the request needn't know how it was asked.

SOCKS5 (RFC 1928) with or without user names (RFC 1929) is the protocol spoken here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from gevent.socket import socket

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    AuthenticationFailed,
    BadRequest,
    ClientError,
    ClientGone,
    CommandNotSupported,
    GsocksError,
    Reply,
    StreamError,
)
from gsocks.request import Command, Request
from gsocks.stream import Reader, send_all

#: who may come in: a user name and a password to whether they fit (see gsocks.users)
Authenticate = Callable[[str, bytes], bool]

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

# What people point at the port by mistake.
_SOCKS4 = 0x04
_SOCKS4_REJECTED = b"\x00\x5b" + bytes(6)  # VN 0, CD 91, and six bytes that mean nothing
_TLS_HANDSHAKE = 0x16  # RFC 8446 section 5.1
_HTTP_METHODS = b"CDGHOPT"  # CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE
_HTTP_REJECTED = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"This port speaks SOCKS5, not HTTP.\n"
)


class Answer(Protocol):
    """How a request is answered in the protocol in which it was asked; once, in one write."""

    def succeeded(self, bound: Address) -> None:
        """The request is served, from ``bound`` as its true outbound address.

        What the client reads next is the stream.  Raises StreamError if it is gone.
        """

    def failed(self, error: GsocksError) -> None:
        """The request is not served, because of ``error``.  Never raises.

        Close with :func:`gsocks.stream.close_after_reply`, so that the answer arrives.
        """


def negotiate(
    sock: socket,
    authenticate: Authenticate | None,
    commands: Collection[Command] = CONNECT_ONLY,
) -> tuple[Request, Answer]:
    """Listen to a client until it has asked for something.

    ``authenticate`` decides who may come in; None leaves the door open, and a user name is taken
    but means nothing.  ``commands`` are those that this door serves.  The time that the client
    may take is the caller's to limit, by a gevent.Timeout around this call; so is the closing of
    ``sock``, by :func:`gsocks.stream.close_after_reply`.

    Raises a :class:`gsocks.errors.ClientError`, once the client has been told in its own
    protocol: BadRequest, BadAddress, AddressTypeNotSupported, CommandNotSupported,
    AuthenticationFailed; and ClientGone, if it has hung up.
    """
    reader = Reader(sock)
    try:
        version = reader.exactly(1, _AHEAD)[0]
        if version == _SOCKS5:
            return _socks5(sock, reader, authenticate, commands)
    except StreamError as error:
        raise ClientGone(f"hung up before its request was whole: {error}") from None
    raise _stranger(sock, version)


# --- SOCKS5: RFC 1928, and RFC 1929 where a user name is asked for --------------------------


def _socks5(
    sock: socket,
    reader: Reader,
    authenticate: Authenticate | None,
    commands: Collection[Command],
) -> tuple[Request, Answer]:
    user = _agree_on_method(sock, reader, authenticate)
    answer = _Socks5Answer(sock)
    try:
        command, dest = _read_request(reader, commands)
    except ClientError as error:  # the caller's HandshakeTimeout too
        answer.failed(error)
        raise
    return Request(command, dest, user, reader.take_rest()), answer


def _agree_on_method(sock: socket, reader: Reader, authenticate: Authenticate | None) -> str | None:
    """The greeting, RFC 1928 section 3, behind its first byte; returns who the client is."""
    count = reader.exactly(1)[0]
    offered = reader.exactly(count)
    if authenticate is None and _NO_AUTHENTICATION in offered:
        send_all(sock, bytes((_SOCKS5, _NO_AUTHENTICATION)))
        return None
    if _USERNAME_PASSWORD not in offered:
        _last_words(sock, bytes((_SOCKS5, _NO_ACCEPTABLE_METHODS)))
        raise AuthenticationFailed("offers no method of authentication that this door takes")
    # An open door comes here too: some clients that were given credentials offer nothing else.
    send_all(sock, bytes((_SOCKS5, _USERNAME_PASSWORD)))
    return _log_in(sock, reader, authenticate)


def _log_in(sock: socket, reader: Reader, authenticate: Authenticate | None) -> str | None:
    """User name and password, RFC 1929 section 2; returns the name that was authenticated."""
    version, length = reader.exactly(2, _AHEAD)
    if version != _LOGIN:
        _last_words(sock, _LOGIN_FAILED)
        raise BadRequest(f"login of version {version}, which RFC 1929 doesn't know")
    # Either may be empty: the RFC forbids it, clients send it, and the credentials decide.
    name = _printable(reader.exactly(length))
    length = reader.exactly(1)[0]
    password = reader.exactly(length)
    if authenticate is None:
        send_all(sock, _LOGIN_SUCCEEDED)
        return None
    if not authenticate(name, password):
        _last_words(sock, _LOGIN_FAILED)
        raise AuthenticationFailed(f"no user {name!r} with that password")
    send_all(sock, _LOGIN_SUCCEEDED)
    return name


def _printable(name: bytes) -> str:
    """A user name as text that is fit for a log line.

    RFC 1929 gives it no encoding.  It is read as UTF-8; a byte that isn't, and a character that
    can't be printed, stand as their escapes (``\\xff``, ``\\n``).
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
    dest = Address.read(reader.exactly)
    if command not in commands:
        raise CommandNotSupported(f"command {command:#04x} is not served here")
    return Command(command), dest


class _Socks5Answer:
    """The replies of RFC 1928 section 6."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket) -> None:
        self._sock = sock

    def succeeded(self, bound: Address) -> None:
        send_all(self._sock, _socks5_reply(Reply.SUCCEEDED, bound))

    def failed(self, error: GsocksError) -> None:
        _last_words(self._sock, _socks5_reply(error.reply, UNSPECIFIED))


def _socks5_reply(reply: Reply, bound: Address) -> bytes:
    return bytes((_SOCKS5, reply, 0x00)) + bound.encode()


# --- whatever else comes to the port --------------------------------------------------------


def _stranger(sock: socket, first: int) -> BadRequest:
    """Tells the client, and by the error its owner, what was probably meant."""
    if first == _SOCKS4:
        _last_words(sock, _SOCKS4_REJECTED)
        return BadRequest("looks like SOCKS4: this port speaks SOCKS5")
    if first in _HTTP_METHODS:
        _last_words(sock, _HTTP_REJECTED)
        return BadRequest("looks like an HTTP request: this port speaks SOCKS5")
    if first == _TLS_HANDSHAKE:
        return BadRequest("looks like TLS: this port speaks SOCKS5, unencrypted")
    return BadRequest(f"begins with {first:#04x}, which is no protocol spoken on this port")


def _last_words(sock: socket, data: bytes) -> None:
    try:
        send_all(sock, data)
    except StreamError:
        pass  # the client is gone; there is nobody left to tell, and the cause is told anyway
