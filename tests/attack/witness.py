"""Another client of the gsocks that is under attack, in a process of its own.

So neither the flood's threads nor the test take its time.  It plays its own origin too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.waiting import TOO_LONG

# not from tests.support.program, which would have each witness import pytest
_ROOT = Path(__file__).parent.parent.parent

#: what the process says when its requests begin
_BEGUN = b"begun\n"

#: seconds after which a request counts as not served
GIVE_UP = 15.0
#: requests in a row that are not served, after which the witness asks no more
ENOUGH = 2
#: seconds between two of the requests that it makes beyond its number, so that these leave the CPU
#: to the flood that is waited for
PAUSE = 0.02


class Testimony(NamedTuple):
    """What the witness has seen."""

    #: of each request that was served, milliseconds from its connect to the origin's answer
    ms: list[float]
    #: of each other one, why
    failures: list[str]

    @property
    def served(self) -> int:
        return len(self.ms)


@dataclass(frozen=True)
class Asking:
    """A witness that asks at this moment."""

    #: empty until it has ended
    testimony: Testimony
    _process: subprocess.Popen[bytes]

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself, as it is not served."""
        return self._process.poll() is not None


@dataclass(frozen=True)
class Witness:
    """Makes one request after the other at a SOCKS5 listener on loopback."""

    port: int
    #: of the origin, as the requests name it; an address or a name of this machine
    host: str = "127.0.0.1"
    #: the client's address
    source: str = "127.0.0.1"
    user: str | None = None
    password: str = ""

    def ask(self, count: int) -> Testimony:
        """Make ``count`` requests, each over a connection of its own.

        It makes no more of them once it is clear that it is not served.
        """
        with self.asking(count) as asking:
            pass
        return asking.testimony

    @contextmanager
    def asking(self, count: int) -> Iterator[Asking]:
        """The same, with further requests for as long as the block takes.

        The block begins when the requests do.
        """
        with subprocess.Popen(
            [sys.executable, "-m", "tests.attack.witness"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what readline() would read ahead, communicate() would miss
            cwd=_ROOT,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                asking = Asking(Testimony([], []), process)
                process.stdin.write(json.dumps([dataclasses.asdict(self), count]).encode() + b"\n")
                assert process.stdout.readline() == _BEGUN, "the witness did not begin"
                yield asking
                told, _ = process.communicate(timeout=TOO_LONG + count)
                assert process.returncode == 0, "the witness failed"
            except BaseException:
                process.kill()
                raise
        seen = Testimony(**json.loads(told))
        asking.testimony.ms.extend(seen.ms)
        asking.testimony.failures.extend(seen.failures)

    # --- in the process of the witness --------------------------------------------------------

    def request(self, port: int) -> None:
        """One request, whose origin is at ``port``.  Raises OSError if it is not served."""
        at = (self.source, 0)
        with socket.create_connection(("127.0.0.1", self.port), GIVE_UP, at) as sock:
            socks5_connect(sock, self.host, port, self.user, self.password)
            sock.sendall(b"?")
            if read_exactly(sock, 1) != b"!":
                raise OSError("another answer than the origin's")


def socks5_connect(
    sock: socket.socket, host: str, port: int, user: str | None = None, password: str = ""
) -> None:
    """Have a SOCKS5 listener connect ``sock`` to a destination (RFC 1928, RFC 1929).

    Raises OSError if it refuses.
    """
    sock.sendall(b"\x05\x01\x00" if user is None else b"\x05\x01\x02")
    if read_exactly(sock, 2) != (b"\x05\x00" if user is None else b"\x05\x02"):
        raise OSError("another method than offered")
    if user is not None:
        sock.sendall(b"\x01" + _with_length(user) + _with_length(password))
        if read_exactly(sock, 2) != b"\x01\x00":
            raise OSError("the login was refused")
    sock.sendall(b"\x05\x01\x00" + _address(host) + port.to_bytes(2, "big"))
    _, reply, _, kind = read_exactly(sock, 4)
    if reply:
        raise OSError(f"refused with reply {reply}")
    read_exactly(sock, {1: 6, 4: 18}[kind])


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Raises OSError if the stream ends before ``count`` bytes."""
    got = b""
    while len(got) < count:
        piece = sock.recv(count - len(got))
        if not piece:
            raise OSError(f"closed after {len(got)} of {count} bytes")
        got += piece
    return got


def _with_length(text: str) -> bytes:
    return bytes((len(text.encode()),)) + text.encode()


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return b"\x03" + _with_length(host)
    return bytes((1 if address.version == 4 else 4,)) + address.packed


def _answer(listener: socket.socket) -> None:
    """Answer every connection, until the listener is closed."""
    with contextlib.suppress(OSError):  # of the listener: it may be closed before it is back there
        while True:
            accepted, _ = listener.accept()
            with accepted, contextlib.suppress(OSError):  # of one request, which fails by itself
                if accepted.recv(1):
                    accepted.sendall(b"!")


def _told_to_end() -> bool:
    """Wait until the test closes the standard input, for ``PAUSE`` at most."""
    return bool(select.select([sys.stdin], [], [], PAUSE)[0])


def main() -> None:
    options, count = json.loads(sys.stdin.readline())
    witness = Witness(**options)
    ms: list[float] = []
    failures: list[str] = []
    in_a_row = 0
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        sys.stdout.write(_BEGUN.decode())
        sys.stdout.flush()
        while len(ms) + len(failures) < count or not _told_to_end():
            began = time.perf_counter()
            try:
                witness.request(listener.getsockname()[1])
            except OSError as error:
                failures.append(f"{type(error).__name__}: {error}")
                in_a_row += 1
                if in_a_row == ENOUGH:
                    break
            else:
                in_a_row = 0
                ms.append(1000 * (time.perf_counter() - began))
        json.dump({"ms": ms, "failures": failures}, sys.stdout)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
