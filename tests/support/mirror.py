"""Exits by their addresses: a web server that tells where a request comes from."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.waiting import TOO_LONG

EXITS = [f"127.0.1.{number}" for number in range(1, 9)]


class _Mirror(BaseHTTPRequestHandler):
    """Answers with the address that a request comes from."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def mirror_server() -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mirror)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def exit_of(port: int, url: str, user: str = "") -> str:
    """Which exit serves a request of its own connection."""
    client = HTTPConnection("127.0.0.1", port, timeout=TOO_LONG)
    credentials = b64encode(f"{user}:".encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {credentials}"} if user else {}
    client.request("GET", url, headers=headers)
    answer = client.getresponse()
    assert answer.status == 200
    told = answer.read().decode()
    client.close()
    return told
