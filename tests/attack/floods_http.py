"""Floods by HTTP: clients, origin servers, exits and sources of lists that go on without end."""

from __future__ import annotations

import gzip
import itertools
import socket
import threading
from base64 import b64encode
from collections.abc import Callable

from tests.attack.flood import Attacked, Scene, flood
from tests.attack.witness import Witness
from tests.support.waiting import TOO_LONG

#: a local end that goes out by itself, to loopback too, but not to 10.0.0.0/8
DIRECT = "local: {listen: '127.0.0.1:0', rules: [deny 10.0.0.0/8, allow all]}\n"

HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4096
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"1\r\nx\r\n" * 10_000


def _head_of(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(65536) or _ended()
    return head


def _ended() -> bytes:
    raise ConnectionError("the peer has ended")


def _endless(scene: Scene, once: bytes, again: bytes) -> Callable[[socket.socket], None]:
    """A server that answers every request with ``once``, and with ``again`` without end."""

    def serve(sock: socket.socket) -> None:
        _head_of(sock)
        sock.sendall(once)
        while again and not scene.over.is_set():
            sock.sendall(again)
            scene.note_done()

    return serve


def _requests(scene: Scene, port: int, request: bytes) -> None:
    """One request after another, each over a connection of its own, read to its end."""

    def one() -> None:
        with scene.connect(port) as sock:
            sock.sendall(request)
            while sock.recv(1 << 18):
                pass

    scene.keep_doing(one)


def _get(port: int, *fields: bytes) -> bytes:
    lines = [b"GET http://127.0.0.1:%d/ HTTP/1.1" % port, b"Host: a", *fields]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


# --- clients ------------------------------------------------------------------------------------


@flood("a client pipelines requests that the proxy answers itself")
def pipelined_options(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    request = b"OPTIONS http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"
    scene.pour(program.port(), request * 1000)
    return Attacked(program, Witness(program.port()))


@flood("a client pipelines requests that are forbidden")
def pipelined_forbidden(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    scene.pour(program.port(), b"GET http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
    return Attacked(program, Witness(program.port()))


@flood("a client sends heads of 13,000 empty fields")
def empty_fields(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    head = b"GET http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\n" + b"A:\r\n" * 13_000 + b"\r\n"
    _requests(scene, program.port(), head)
    return Attacked(program, Witness(program.port()))


@flood("a client sends empty lines instead of a request")
def empty_lines(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    begin = b"OPTIONS http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"
    scene.pour(program.port(), b"\r\n" * 100_000, lambda sock: sock.sendall(begin))
    return Attacked(program, Witness(program.port()))


@flood("a client uploads in chunks of one byte")
def upload_in_tiny_chunks(scene: Scene) -> Attacked:
    program = scene.gsocks(DIRECT)
    sink = scene.origin(_read_all)
    head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    scene.pour(program.port(), CHUNKS, lambda sock: sock.sendall(head % sink))
    return Attacked(program, Witness(program.port()))


def _read_all(sock: socket.socket) -> None:
    while sock.recv(1 << 18):
        pass


# --- origin servers -----------------------------------------------------------------------------


def _by_origin(scene: Scene, once: bytes, again: bytes) -> Attacked:
    program = scene.gsocks(DIRECT)
    origin = scene.origin(_endless(scene, once, again))
    _requests(scene, program.port(), _get(origin))
    return Attacked(program, Witness(program.port()))


@flood("an origin server sends interim answers without end")
def interim_answers(scene: Scene) -> Attacked:
    return _by_origin(scene, b"", HINTS)


@flood("an origin server sends chunks of one byte without end")
def tiny_chunks(scene: Scene) -> Attacked:
    return _by_origin(scene, CHUNKED, CHUNKS)


@flood("an origin server sends the largest heads, none of them valid")
def broken_heads(scene: Scene) -> Attacked:
    lines = b"a b: " + b"c" * 100 + b"\r\n d\r\n"
    return _by_origin(scene, b"HTTP/1.1 200 OK\r\n" + lines * 990 + b"\r\n", b"")


@flood("an origin server sends trailers without end")
def trailers(scene: Scene) -> Attacked:
    return _by_origin(scene, CHUNKED + b"0\r\n", b"a:b\r\n" * 10_000)


@flood("an origin server sends bodies that expand a thousand times")
def bombs(scene: Scene) -> Attacked:
    page = gzip.compress(bytes(3_900_000), mtime=0)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    return _by_origin(scene, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page), b"")


# --- exits and sources of lists -----------------------------------------------------------------


@flood("an HTTP exit answers CONNECT with interim answers without end")
def interim_answers_of_an_exit(scene: Scene) -> Attacked:
    proxy = scene.origin(_endless(scene, b"", HINTS))
    exits = f"[{{url: direct, name: straight}}, {{url: 'http://127.0.0.1:{proxy}', name: bad}}]"
    program = scene.gsocks(DIRECT[:-2] + f", exits: {exits}}}\n")
    login = b"Proxy-Authorization: Basic " + b64encode(b"x-exit-bad:")
    asked = b"CONNECT 127.0.0.1:9 HTTP/1.1\r\nHost: a\r\n" + login + b"\r\n\r\n"
    for _ in range(4):
        _requests(scene, program.port(), asked)
    return Attacked(program, Witness(program.port(), user="x-exit-straight"))


class _Later:
    """A source that answers by ``serve``, but to its first request that it has no list.

    So gsocks starts without waiting for a list, and the flood begins beside its clients.
    """

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self._serve = serve
        self._started = False
        #: set as soon as the flood is on its way
        self.under_way = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        if self._started:
            self.under_way.set()
            self._serve(sock)
        else:
            self._started = True
            _head_of(sock)
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def _with_source(scene: Scene, source: _Later) -> Attacked:
    sources = f"[{{url: 'http://127.0.0.1:{scene.origin(source)}/list', interval: 1s}}]"
    program = scene.gsocks(
        DIRECT[:-2] + f", exits: [{{url: direct, name: straight}}], exit_sources: {sources}}}\n"
    )
    return Attacked(program, Witness(program.port(), user="x-exit-straight"))


def _by_source(scene: Scene, once: bytes, again: bytes) -> Attacked:
    source = _Later(_endless(scene, once, again))
    attacked = _with_source(scene, source)
    assert source.under_way.wait(TOO_LONG), "gsocks never asked again"
    return attacked


@flood("a source of a list sends interim answers without end")
def interim_answers_of_a_source(scene: Scene) -> Attacked:
    return _by_source(scene, b"", HINTS)


@flood("a source of a list sends chunks of one byte without end")
def tiny_chunks_of_a_source(scene: Scene) -> Attacked:
    return _by_source(scene, CHUNKED, CHUNKS)


def _by_long_lists(scene: Scene, lists: list[bytes]) -> Attacked:
    """A source whose list is another one each time; it sends the first when the witness asks.

    Else a slow machine would read most of it before, and the witness wait for all of the next.
    """
    turn = itertools.cycle(lists)

    def serve(sock: socket.socket) -> None:
        _head_of(sock)
        scene.asked.wait()
        body = next(turn)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        scene.note_done()

    return _with_source(scene, _Later(serve))


#: bytes of a list, a little less than the most
LONG = 16_700_000


@flood("a source's list has a million entries of JSON")
def many_in_json(scene: Scene) -> Attacked:
    lists = [b"[%s]" % b",".join([b"[%d]" % n] * (LONG // 4)) for n in range(2)]
    return _by_long_lists(scene, lists)


@flood("a source's list has 100,000 entries of JSON")
def long_list_of_json(scene: Scene) -> Attacked:
    def listed(first: int) -> bytes:
        # of loopback: gsocks probes them, and no test may connect to strangers
        form = b'{"ip": "127.%d.%d.%d", "port": 9, "protocol": "http", "country": "Germany"}'
        numbers = range(100_000)
        made = [form % (first + (n >> 16), n >> 8 & 255, n & 255) for n in numbers]
        return b"[%s]" % b",".join(made)

    return _by_long_lists(scene, [listed(11), listed(13)])
