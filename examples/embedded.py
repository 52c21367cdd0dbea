"""gsocks inside a gevent program that has work of its own.

A web application, a gsocks server and a local end run on one hub; then a page of the application
is fetched through both ends, by a socket that speaks SOCKS5 in plain sight.  Nothing is patched.

    python examples/embedded.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gevent.pywsgi import WSGIServer
from gevent.socket import create_connection

from gsocks import Address, Key, LocalServer, Observer, Record, RemoteServer


class Counter(Observer):
    """What the host program wants to know of each connection."""

    def __init__(self) -> None:
        self.bytes = 0

    def ended(self, record: Record) -> None:
        self.bytes += record.up + record.down


def application(_: dict[str, str], start: Callable[..., object]) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"hello from the inside\n"]


def fetch(proxy: Address, page: Address) -> bytes:
    """An HTTP GET through a SOCKS5 proxy."""
    with create_connection(proxy, timeout=10) as sock:
        sock.sendall(b"\x05\x01\x00")  # version 5, one method: no authentication
        sock.recv(2)
        sock.sendall(b"\x05\x01\x00" + page.encode())  # CONNECT
        reply = sock.recv(10)
        if reply[1]:
            raise ConnectionError(f"the proxy replied {reply[1]}")
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer.partition(b"\r\n\r\n")[2]


def main() -> None:
    web = WSGIServer(("127.0.0.1", 0), application, log=None)
    web.start()

    key = Key.generate()
    # the page is on loopback, which the rules deny unless they are told otherwise
    server = RemoteServer("127.0.0.1:0", keys={"me": key}, rules=["allow loopback"])
    server.start()
    counter = Counter()
    local = LocalServer(
        "127.0.0.1:0",
        [f"gsocks://{key.text()}@{server.bound}"],
        rules=["allow loopback"],
        observer=counter,
    )
    local.start()

    page = Address("127.0.0.1", web.socket.getsockname()[1])
    print(fetch(local.bound, page).decode(), end="")

    local.stop(timeout=5)
    server.stop(timeout=5)
    web.stop()
    print(f"{counter.bytes} bytes went through the local end")


if __name__ == "__main__":
    main()
