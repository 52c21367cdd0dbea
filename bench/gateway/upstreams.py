"""The exits of the gateway benchmark: one process that is every proxy and every site at once.

    python -m bench.gateway.upstreams PORT SILENT_PORT     prints a line when it listens

Each address of 127.0.0.0/8 is another exit on PORT, which speaks SOCKS5 and HTTP and answers every
request itself, so that no further connection blurs what the gateway costs.  Of names below .invalid
it says what squid does, as most proxies are that carry requests to any site over one connection.
On SILENT_PORT connections are accepted and never answered.  It listens on the loopback interface
alone, and ends with its stdin.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import sys

BODY = b"Hello, world!\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\n" + BODY

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_NOWHERE = b"HTTP/1.1 503 Service Unavailable\r\nServer: squid/6.13\r\nContent-Length: 0\r\n\r\n"
_GREETED = b"\x05\x00"
_LOGGED_IN = b"\x01\x00"
_SUCCEEDED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"
_SOCKS = 5
_USER_PASSWORD = 2
_DOMAIN = 3
_END = b"\r\n\r\n"


class _Connection:
    """One client: what it has sent and was not answered yet, and what it speaks."""

    __slots__ = ("data", "in_tunnel", "sock", "steps")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        self.in_tunnel = False
        #: messages of SOCKS that were answered
        self.steps = 0

    def answer(self) -> bytes:
        """The answer to the next whole message in ``data``; b"" if there is none."""
        if not self.data:
            return b""
        if not self.in_tunnel and (self.data[0] == _SOCKS or self.steps):
            return self._socks()
        head, end, rest = self.data.partition(_END)
        if not end:
            return b""
        self.data = rest
        if head.startswith(b"CONNECT "):
            if b".invalid:" in head.partition(b"\r\n")[0]:
                return _NOWHERE
            self.in_tunnel = True
            return _ESTABLISHED
        return ANSWER

    def _socks(self) -> bytes:
        self.steps += 1
        if self.steps == 1:
            methods = self.data[2 : 2 + self.data[1]]
            self.data = self.data[2 + self.data[1] :]
            if _USER_PASSWORD in methods and 0 not in methods:
                return bytes((_SOCKS, _USER_PASSWORD))
            self.steps += 1
            return _GREETED
        if self.steps == 2:
            self.data = b""
            return _LOGGED_IN
        # a request is 10 bytes long by IPv4, and tells its length by name
        size = 7 + self.data[4] if self.data[3] == _DOMAIN else 10
        self.data = self.data[size:]
        self.in_tunnel = True
        return _SUCCEEDED


def _listen(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # every address of loopback, and none of any other interface
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    sock.bind(("0.0.0.0", port))
    sock.listen(4096)
    sock.setblocking(False)
    return sock


def _serve(listener: socket.socket, silent: socket.socket, until: int) -> None:
    poll = select.epoll()
    connections: dict[int, _Connection] = {}
    held: list[socket.socket] = []
    for descriptor in (listener.fileno(), silent.fileno(), until):
        poll.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == until:
                return
            if descriptor == silent.fileno():
                with contextlib.suppress(OSError):
                    held.append(silent.accept()[0])
            elif descriptor == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        connections[sock.fileno()] = _Connection(sock)
                        poll.register(sock.fileno(), select.EPOLLIN)
            elif not _go_on(connections[descriptor]):
                connections.pop(descriptor).sock.close()


def _go_on(connection: _Connection) -> bool:
    """Read and answer; False: the connection is over."""
    try:
        data = connection.sock.recv(65536)
        connection.data += data
        while answer := connection.answer():
            connection.sock.send(answer)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return bool(data)


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, silent_port = map(int, sys.argv[1:])
    listener, silent = _listen(port), _listen(silent_port)
    print("ready", flush=True)
    _serve(listener, silent, sys.stdin.fileno())


if __name__ == "__main__":
    main()
