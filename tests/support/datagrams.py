"""UDP for tests: servers that answer datagrams, and a client's association by hand."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from engine import TOO_LONG, Refused, connect, read_exactly
from gevent.socket import socket

from gsocks.address import UNSPECIFIED, Address

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
    assert read_exactly(control, 2) == b"\x05\x00"
    version, reply, reserved = read_exactly(control, 3)
    assert (version, reserved) == (5, 0)
    told = Address.read(lambda count: read_exactly(control, count))
    if reply:
        raise Refused(reply)
    return told


@contextmanager
def association(door: Address, announced: bytes = UNSPECIFIED.encode()) -> Iterator[Association]:
    """An association with the SOCKS door; its datagrams leave by the address that it asked from."""
    with connect(door) as control, udp_socket(control.getsockname()[0]) as sock:
        yield Association(control, ask_for_association(control, announced), sock)
