"""Where a server is sent to: listeners of the tester's own, on this machine."""

from __future__ import annotations

import socket
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer

from tests.conformance.wire import Connection, Deadline

LOOPBACK = "127.0.0.1"


class Listener:
    """A destination of one case, which does with its connections what it likes."""

    def __init__(self, deadline: Deadline, host: str = LOOPBACK) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.bind((host, 0))
        self.sock.listen()
        self._deadline = deadline
        self.port: int = self.sock.getsockname()[1]

    def accept(self) -> Connection:
        """The server's connection.  Raises TimeoutError."""
        self.sock.settimeout(self._deadline.left)
        sock, _ = self.sock.accept()
        return Connection(sock, self._deadline)

    def was_asked(self, seconds: float) -> bool:
        """Whether a connection comes in that time."""
        self.sock.settimeout(seconds)
        try:
            self.sock.accept()[0].close()
        except TimeoutError:
            return False
        return True


class _Echo(BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
            self.request.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # reset, as some cases do


class EchoServer:
    """Gives back what it gets, to all cases."""

    def __init__(self) -> None:
        self._server = ThreadingTCPServer((LOOPBACK, 0), _Echo)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """No connection is accepted any more."""
        self._server.shutdown()
        self._server.server_close()


def closed_port() -> socket.socket:
    """A socket that holds a port at which nothing listens."""
    sock = socket.socket()
    sock.bind((LOOPBACK, 0))
    return sock
