"""UDP for tests: servers that answer datagrams, and a client's association by hand."""

from __future__ import annotations

import errno
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from gevent.socket import socket

from gsocks.address import UNSPECIFIED, Address
from gsocks.exits.base import Exit
from gsocks.request import Command, Request
from tests.support.engine import connect, read_answer
from tests.support.waiting import TOO_LONG

#: what a server makes of a datagram: its answer, which may go elsewhere, or None
Handler = Callable[[socket, bytes, tuple[str, int]], bytes | None]


def family_of(host: str) -> int:
    return std_socket.AF_INET6 if ":" in host else std_socket.AF_INET


@contextmanager
def udp_socket(host: str = "127.0.0.1") -> Iterator[socket]:
    """A UDP socket at some port of ``host``."""
    with socket(family_of(host), std_socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(TOO_LONG)
        yield sock


def address(sock: socket) -> Address:
    return Address.from_sockaddr(sock.getsockname())


def echo(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
    return payload


def who_asks(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
    """Answers with the address that the question came from."""
    return str(Address.from_sockaddr(source)).encode()


@contextmanager
def udp_server(host: str = "127.0.0.1", handle: Handler = echo) -> Iterator[Address]:
    """A UDP server; what ``handle`` returns goes back to where the datagram came from."""

    def serve() -> None:
        while True:
            payload, source = sock.recvfrom(65535)
            answer = handle(sock, payload, source)
            if answer is not None:
                sock.sendto(answer, source)

    with udp_socket(host) as sock:
        sock.settimeout(None)
        server = gevent.spawn(serve)
        try:
            yield address(sock)
        finally:
            server.kill()


class Association:
    """A client's: the connection that it asked over, and the socket that its datagrams leave by."""

    def __init__(self, control: socket, relay: Address, sock: socket) -> None:
        self.control = control
        #: where it was told to send to
        self.relay = relay
        self.sock = sock

    def send(self, dest: Address, payload: bytes) -> None:
        self.send_packet(bytes(3) + dest.encode() + payload)

    def send_packet(self, packet: bytes) -> None:
        self.sock.sendto(packet, self.relay)

    def receive(self) -> tuple[Address, bytes]:
        packet, sender = self.sock.recvfrom(65535)
        assert Address.from_sockaddr(sender) == self.relay
        assert packet[:3] == bytes(3)
        rest = memoryview(packet)[3:]

        def take(count: int) -> bytes:
            nonlocal rest
            taken, rest = bytes(rest[:count]), rest[count:]
            return taken

        source = Address.read(take)
        return source, bytes(rest)

    def ask(self, dest: Address, payload: bytes) -> tuple[Address, bytes]:
        self.send(dest, payload)
        return self.receive()


def ask_for_association(control: socket, announced: bytes = UNSPECIFIED.encode()) -> Address:
    """Greeting and request; returns BND.ADDR and BND.PORT, raises Refused."""
    control.sendall(b"\x05\x01\x00" + b"\x05\x03\x00" + announced)
    return read_answer(control)


class Flood:
    """A socket that always has something to be read, of the same kind; ends after a while."""

    def __init__(self, packet: bytes, source: tuple[str, int], count: int) -> None:
        self.packet = packet
        self.source = source
        self.left = count

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOMEM, "enough")
        return self.packet, self.source

    def close(self) -> None:
        pass


@contextmanager
def association(inbound: Address, announced: bytes = UNSPECIFIED.encode()) -> Iterator[Association]:
    """An association with the SOCKS listener; its datagrams leave from its client's address."""
    with connect(inbound) as control, udp_socket(control.getsockname()[0]) as sock:
        yield Association(control, ask_for_association(control, announced), sock)


def exchange(way: Exit, dest: Address, payload: bytes) -> bytes:
    """What comes back of a datagram through ``way``."""
    stream = way.associate(Request(Command.UDP_ASSOCIATE, UNSPECIFIED)).stream  # type: ignore[attr-defined]
    head = dest.encode()
    try:
        stream.write(head + payload)
        answer: bytes = stream.read()
        assert answer.startswith(head)
        return answer[len(head) :]
    finally:
        stream.abort()
