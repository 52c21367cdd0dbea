"""A name server on loopback, made of dnspython: what it says is not made by the code under test."""

from __future__ import annotations

import socket as std_socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import gevent
from gevent.server import DatagramServer, StreamServer
from gevent.socket import socket

from gsocks.dns.name_server import NameServer

#: the addresses of a name, or its whole answer made of the question, or None: silence
Entry: TypeAlias = "list[str] | Callable[[dns.message.Message], dns.message.Message | None] | None"


def _sockets(host: str) -> tuple[socket, socket]:
    """For datagrams and for connections, on one port that is free for both."""
    family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
    while True:
        connections = socket(family, std_socket.SOCK_STREAM)
        connections.bind((host, 0))
        connections.listen(64)
        connections.setblocking(False)
        datagrams = socket(family, std_socket.SOCK_DGRAM)
        try:
            datagrams.bind(connections.getsockname())
        except OSError:
            connections.close()
            datagrams.close()
            continue
        datagrams.setblocking(False)
        return datagrams, connections


class FakeNameServer:
    """Answers from a table; names that are not in there don't exist."""

    def __init__(self, host: str = "127.0.0.1", **table: Entry) -> None:
        self.table: dict[str, Entry] = {k.replace("_", "."): v for k, v in table.items()}
        self.ttl = 300
        #: whether it answers at all
        self.silent = False
        #: seconds until it answers
        self.delay = 0.0
        #: over UDP or TCP, name and type of each question
        self.asked: list[tuple[str, str, str]] = []
        #: over TCP, TLS and HTTPS
        self.connections = 0
        #: of answers over HTTPS
        self.status = 200
        self._more: list[StreamServer] = []
        datagrams, connections = _sockets(host)
        self.port = int(datagrams.getsockname()[1])
        self._udp = DatagramServer(datagrams, self._datagram, spawn=1000)
        self._udp.start()
        self._tcp = StreamServer(connections, self._connection, spawn=1000)
        self._tcp.start()
        self.server = NameServer(host, self.port)

    def names_asked(self, kind: str = "A") -> list[str]:
        return [name for _, name, asked in self.asked if asked == kind]

    def over_tls(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> int:
        """Answer over TLS too; returns the port."""
        server = StreamServer((host, 0), self._connection, spawn=1000, ssl_context=context)
        server.start()
        self._more.append(server)
        return int(server.server_port or 0)

    def over_https(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> int:
        """Answer over HTTPS too; returns the port."""
        server = StreamServer((host, 0), self._posts, spawn=1000, ssl_context=context)
        server.start()
        self._more.append(server)
        return int(server.server_port or 0)

    def drop(self) -> None:
        """Close the connections over TLS and HTTPS."""
        for server in self._more:
            assert server.pool is not None
            server.pool.kill()

    def close(self) -> None:
        for server in self._more:
            server.close()
            server.stop(0)
        self._udp.close()
        self._tcp.close()
        self._udp.stop(0)
        self._tcp.stop(0)

    def _datagram(self, packet: Any, peer: Any) -> None:
        answer = self.answer(dns.message.from_wire(packet), "udp")
        if answer is None:
            return
        wire = answer.to_wire(max_size=65535)
        if len(wire) > 512:
            short = dns.message.make_response(dns.message.from_wire(packet))
            short.flags |= dns.flags.TC
            wire = short.to_wire()
        self._udp.sendto(wire, peer)

    def _posts(self, sock: std_socket.socket, peer: object) -> None:
        self.connections += 1
        with sock, sock.makefile("rb") as file:
            while line := file.readline():
                assert line == b"POST /dns-query HTTP/1.1\r\n"
                fields = {}
                while (field := file.readline()) != b"\r\n":
                    name, _, value = field.decode().partition(":")
                    fields[name.lower()] = value.strip()
                assert fields["content-type"] == fields["accept"] == "application/dns-message"
                question = dns.message.from_wire(file.read(int(fields["content-length"])))
                answer = self.answer(question, "https")
                body = answer.to_wire() if answer is not None else b""
                head = f"HTTP/1.1 {self.status} OK\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall(head.encode() + body)

    def _connection(self, sock: std_socket.socket, peer: object) -> None:
        self.connections += 1
        with sock, sock.makefile("rb") as file:
            while len(head := file.read(2)) == 2:
                question = dns.message.from_wire(file.read(int.from_bytes(head, "big")))
                answer = self.answer(question, "tcp")
                if answer is not None:
                    wire = answer.to_wire(max_size=65535)
                    sock.sendall(len(wire).to_bytes(2, "big") + wire)

    def answer(self, question: dns.message.Message, over: str) -> dns.message.Message | None:
        asked = question.question[0]
        name, kind = asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((over, name, kind))
        gevent.sleep(self.delay)
        entry = self.table.get(name, [])
        if self.silent or entry is None:
            return None
        if callable(entry):
            return entry(question)
        response = dns.message.make_response(question)
        response.flags |= dns.flags.RA
        if name not in self.table:
            response.set_rcode(dns.rcode.NXDOMAIN)
        addresses = [each for each in entry if (":" in each) == (kind == "AAAA")]
        if addresses:
            response.answer.append(
                dns.rrset.from_text_list(asked.name, self.ttl, "IN", kind, addresses)
            )
        return response


def refuses(rcode: str) -> Callable[[dns.message.Message], dns.message.Message]:
    """An answer that is a failure, such as SERVFAIL."""

    def answer(question: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(question)
        response.set_rcode(dns.rcode.from_text(rcode))
        return response

    return answer


@contextmanager
def name_server(host: str = "127.0.0.1", **table: Entry) -> Iterator[FakeNameServer]:
    """A name server for a test."""
    server = FakeNameServer(host, **table)
    try:
        yield server
    finally:
        server.close()
