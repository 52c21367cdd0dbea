"""Messages to a name server and back: datagrams, and connections over TCP, TLS and HTTPS."""

from __future__ import annotations

import os
import socket as std_socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import h11
from gevent import ssl
from gevent.socket import socket, wait_write

from gsocks.dns.message import Question
from gsocks.dns.name_server import NameServer, Transport

#: idle connections of one TLS server that are kept, RFC 7858 section 3.4
_MAX_KEPT = 8
#: bytes of the head of an answer over HTTPS
_MAX_HEAD = 16 * 1024
#: bytes of a message over TCP, whose length has 16 bits
_MAX_MESSAGE = 65535


class BadTransport(OSError):
    """What a name server sent is no message."""


def sockaddr(server: NameServer) -> tuple[int, tuple[Any, ...]]:
    """Family and socket address of a name server; the zone of an IPv6 address is a number there.

    Not by getaddrinfo, which is gevent's in a patched program and waits for one of its threads.
    Raises OSError for a zone that there is not.
    """
    host, _, zone = server.host.partition("%")
    if ":" not in host:
        return std_socket.AF_INET, (host, server.port)
    number = 0
    if zone:
        number = int(zone) if zone.isdecimal() else std_socket.if_nametoindex(zone)
    return std_socket.AF_INET6, (host, server.port, 0, number)


def datagram_socket(server: NameServer) -> socket:
    """A non-blocking UDP socket that hears only ``server``, on a port that the kernel chose at
    random.  Raises OSError.
    """
    family, address = sockaddr(server)
    sock = socket(family, std_socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class Connections:
    """Connections to name servers; those with TLS are kept for the next look-ups."""

    def __init__(self) -> None:
        self._kept: dict[NameServer, list[_Connection]] = {}

    def exchange(self, server: NameServer, questions: Sequence[Question]) -> list[bytes]:
        """The answers to ``questions``, in any order.  Has no timeout.  Raises OSError."""
        kept = self._kept.get(server)
        while kept:
            connection = kept.pop()
            try:
                return self._over(connection, server, questions)
            except OSError:
                continue  # the server has closed it meanwhile, as it may
        return self._over(_Connection(server), server, questions)

    def _over(
        self, connection: _Connection, server: NameServer, questions: Sequence[Question]
    ) -> list[bytes]:
        try:
            answers = connection.exchange(questions)
        except BaseException:
            connection.close()
            raise
        kept = self._kept.setdefault(server, [])
        if connection.may_be_kept and len(kept) < _MAX_KEPT:
            kept.append(connection)
        else:
            connection.close()
        return answers

    def close(self) -> None:
        """Close those that are kept."""
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()


class _Connection:
    """One connection.  It is connected when it is first used, so that this is bounded too."""

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._sock: socket | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self.may_be_kept = server.transport is not Transport.PLAIN

    def exchange(self, questions: Sequence[Question]) -> list[bytes]:
        """Raises OSError."""
        sock = self._sock or self._connect()
        if self._server.transport is Transport.HTTPS:
            return [self._post(sock, question.encode()) for question in questions]
        messages = [question.encode() for question in questions]
        sock.sendall(b"".join(len(each).to_bytes(2, "big") + each for each in messages))
        return [self._message(sock) for _ in messages]

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def _connect(self) -> socket:
        server = self._server
        family, address = sockaddr(server)
        sock = self._sock = socket(family, std_socket.SOCK_STREAM)
        sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
        sock.setblocking(False)  # else gevent would resolve the address, in a thread
        with suppress(BlockingIOError):
            sock.connect(address)
        wait_write(sock.fileno())
        error = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        sock.setblocking(True)
        if server.transport is not Transport.PLAIN:
            name = server.tls_name or server.host.partition("%")[0]
            sock = self._sock = _trust().wrap_socket(sock, server_hostname=name)
        return sock

    def _message(self, sock: socket) -> bytes:
        return _exactly(sock, int.from_bytes(_exactly(sock, 2), "big"))

    def _post(self, sock: socket, message: bytes) -> bytes:
        http, server = self._http, self._server
        host = server.tls_name or (f"[{server.host}]" if ":" in server.host else server.host)
        fields = [
            ("Host", host if server.port == 443 else f"{host}:{server.port}"),
            ("Accept", "application/dns-message"),
            ("Content-Type", "application/dns-message"),
            ("Content-Length", str(len(message))),
        ]
        request = h11.Request(method="POST", target=server.path, headers=fields)
        try:
            sock.sendall(
                (http.send(request) or b"")
                + (http.send(h11.Data(data=message)) or b"")
                + (http.send(h11.EndOfMessage()) or b"")
            )
            body = _read_answer(sock, http)
        except h11.ProtocolError as error:
            raise BadTransport(f"{server}: {error}") from None
        if http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            http.start_next_cycle()
        else:
            self.may_be_kept = False
        return body


def _read_answer(sock: socket, http: h11.Connection) -> bytes:
    """The body of the next answer, which has to be 200.  Raises OSError, h11.ProtocolError."""
    body = b""
    interim = 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(sock.recv(16 * 1024))
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
            if interim > 8:
                raise BadTransport("a name server that answers 1xx without end")
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                raise BadTransport(f"a name server that answers {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_MESSAGE:
                raise BadTransport("an answer that is longer than a message")
        elif isinstance(event, h11.EndOfMessage):
            return body
        else:
            raise BadTransport("the name server closed the connection")


def _exactly(sock: socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise BadTransport("the name server closed the connection")
        data += piece
    return bytes(data)


@cache
def _trust() -> ssl.SSLContext:
    """Made at the first use: it takes 20 ms and megabytes."""
    # not create_default_context, which makes one of the ssl module, whose sockets block the loop
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context
