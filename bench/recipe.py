"""The README's rotating proxy on lists as they are: how many requests it serves, and how soon.

    python -m bench.recipe                    # all scenarios, some six minutes
    python -m bench.recipe list black         # these

``list``: 20 live exits, 120 that accept and say nothing, 60 that refuse; 60 requests, ten at a
time, in each of three rounds; ``sessions``: the same, each request with a session of its own;
``unreachable``: the 120 drop packets instead.  ``dropping``: 200 exits of which 100 drop packets,
and 40 clients for 48 seconds with the default config; ``black``: 200 good exits of which 50 begin
to drop packets at once, and then the same.  ``hedge``: 200 good exits of which 10 begin to say
nothing at once, eight clients for 20 seconds, without ``hedge`` and with ``hedge: 1s``.

gsocks runs as a program with the config that a user would write.  Exits and clients are this
process, in a network namespace of its own, where packets can be dropped: an exit that does so is an
address from which nothing may be sent (``ip rule ... blackhole``), so that neither SYN nor data is
ever acknowledged.  Each live exit takes its own 50 to 250 ms to connect.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import create_connection, socket

from bench.processes import free_ports, raise_descriptor_limit, start, wait_until_listening

#: seconds that a client waits for its answer
PATIENCE = 30.0
#: a request that takes longer is counted as slow; seconds
SLOW = 2.0

_LIVE, _SILENT, _REFUSING = 8080, 8081, 8082
_SITE = "shop.example:443"

#: the network of the exits that fall silent
_FALLING = "127.0.6"
_silent: set[str] = set()


class Result(NamedTuple):
    """One request of a client."""

    #: monotonic seconds
    began: float
    took: float
    ok: bool


class Figures(NamedTuple):
    """What is counted of many requests."""

    requests: int
    served: int
    #: served or not, after more than SLOW
    slow: int
    longest: float
    #: seconds that 99 of 100 requests took at most
    p99: float

    @classmethod
    def of(cls, results: Sequence[Result]) -> Figures:
        times = sorted(each.took for each in results) or [0.0]
        return cls(
            len(results),
            sum(each.ok for each in results),
            sum(each.took > SLOW for each in results),
            times[-1],
            times[len(times) * 99 // 100],
        )

    def __str__(self) -> str:
        failed = self.requests - self.served
        return (
            f"{self.served} of {self.requests} served,"
            f" {failed / max(1, self.requests):.2%} failed,"
            f" {self.slow / max(1, self.requests):.2%} took over {SLOW:g} s,"
            f" p99 {self.p99:.2f} s, longest {self.longest:.1f} s"
        )


# --- exits --------------------------------------------------------------------------------------


def live(number: int, net: str = "127.0.1") -> str:
    return f"{net}.{number + 1}:{_LIVE}"


def dropping(number: int) -> str:
    """An exit that drops packets, once :func:`drop` was called for 127.0.2."""
    return f"127.0.2.{number + 1}:{_LIVE}"


def falling_silent(number: int) -> str:
    """An exit that works, until :func:`fall_silent` is called."""
    return live(number, _FALLING)


def silent(number: int) -> str:
    return f"127.0.3.{number + 1}:{_SILENT}"


def refusing(number: int) -> str:
    return f"127.0.4.{number + 1}:{_REFUSING}"


def _head(sock: socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            raise OSError("hung up")
        data += part
    return data


def _seconds(sock: socket) -> float:
    """How long an exit takes to connect: each its own time, always the same."""
    last = int(sock.getsockname()[0].rpartition(".")[2])
    return 0.05 + (last * 37 % 100) / 500


def serve(sock: socket, _: object = None) -> None:
    """An HTTP proxy that is the site as well; a name that it doesn't know doesn't exist."""
    try:
        while sock.getsockname()[0].rpartition(".")[0] not in _silent:
            method, target = _head(sock).split(b" ", 2)[:2]
            if method == b"CONNECT" and target != _SITE.encode():
                sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            elif method == b"CONNECT":
                gevent.sleep(_seconds(sock))
                sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                body = sock.getsockname()[0].encode()
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        say_nothing(sock)
    except OSError:
        pass
    finally:
        sock.close()


def fall_silent() -> None:
    """From now on these exits accept, and never answer."""
    _silent.add(_FALLING)


def say_nothing(sock: socket, _: object = None) -> None:
    """Accept, and never answer."""
    try:
        while sock.recv(65536):
            pass
    except OSError:
        pass
    finally:
        sock.close()


@contextmanager
def exits() -> Iterator[None]:
    """All exits, on every address of loopback."""
    servers = [
        StreamServer(("0.0.0.0", _LIVE), serve, backlog=4096),
        StreamServer(("0.0.0.0", _SILENT), say_nothing, backlog=4096),
    ]
    for server in servers:
        server.start()
    try:
        yield
    finally:
        for server in servers:
            server.stop()


# --- dropped packets ----------------------------------------------------------------------------


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _prepare_namespace() -> None:
    _ip("link set lo up")
    # Addresses of this machine are looked up behind the rules of drop(), and not before all others.
    _ip("rule add pref 100 lookup local")
    _ip("rule del pref 0")


def drop(net: str) -> None:
    """From now on nothing is sent from the addresses of ``net``, not even an acknowledgement."""
    _ip(f"rule add pref 50 from {net}.0/24 blackhole")


# --- gsocks -------------------------------------------------------------------------------------


@contextmanager
def gateway(lines: Sequence[str], more: str = "") -> Iterator[int]:
    """The README's recipe with these exits, and ``more`` in its section; the port at which it
    listens."""
    with tempfile.TemporaryDirectory(prefix="gsocks-recipe-") as name:
        folder, (port,) = Path(name), free_ports(1)
        (folder / "proxies.txt").write_text("\n".join(lines))
        (folder / "gateway.yaml").write_text(
            f'local: {{listen: "127.0.0.1:{port}", exit_sources: [{{file: proxies.txt}}],'
            f" rotate: fastest{more}}}\nlog: {{access: false}}\n"
        )
        with (folder / "log").open("wb") as log:
            gsocks = start(
                [sys.executable, "-m", "gsocks", "-c", "gateway.yaml"], folder, stderr=log
            )
            try:
                wait_until_listening(gsocks, port, folder / "log")
                yield port
            finally:
                gsocks.kill()
                gsocks.wait()


# --- clients ------------------------------------------------------------------------------------


def ask(port: int, session: str | None = None, site: str = _SITE) -> Result:
    """One request by CONNECT, as for an https:// page."""
    began = time.monotonic()
    try:
        ok = gevent.with_timeout(PATIENCE, _ask, port, session, site, timeout_value=False)
    except OSError:
        ok = False
    return Result(began, time.monotonic() - began, ok)


def _ask(port: int, session: str | None, site: str) -> bool:
    login = ""
    if session is not None:
        secret = b64encode(f"session-{session}:".encode()).decode()
        login = f"Proxy-Authorization: Basic {secret}\r\n"
    with create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n{login}\r\n".encode())
        if _head(sock).split(b" ", 2)[1] != b"200":
            return False
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {site}\r\n\r\n".encode())
        return b" 200 OK" in _head(sock)


def a_round(port: int, count: int, at_once: int, *, sessions: bool) -> list[Result]:
    """``count`` requests, so many at a time."""
    pool = Pool(at_once)
    return list(
        pool.imap_unordered(
            lambda number: ask(port, f"s{number}" if sessions else None), range(count)
        )
    )


def crowd(port: int, clients: int, seconds: float) -> list[Result]:
    """The requests of clients that ask one after another for so many seconds."""
    results: list[Result] = []
    over = Event()

    def client() -> None:
        while not over.is_set():
            results.append(ask(port))

    greenlets = [gevent.spawn(client) for _ in range(clients)]
    gevent.sleep(seconds)
    over.set()
    gevent.joinall(greenlets, raise_error=True)
    return results


# --- scenarios ----------------------------------------------------------------------------------


def _rounds(dead: Callable[[int], str], *, sessions: bool) -> bool:
    lines = [live(n) for n in range(20)]
    lines += [dead(n) for n in range(120)] + [refusing(n) for n in range(60)]
    well = True
    with gateway(lines) as port:
        for number in range(3):
            figures = Figures.of(a_round(port, 60, 10, sessions=sessions))
            print(f"  round {number + 1}: {figures}", flush=True)
            well &= figures.served >= (60 if number else 50)
    return well


def _fits(figures: Figures) -> bool:
    failed = figures.requests - figures.served
    return failed <= 0.005 * figures.requests and figures.slow <= 0.05 * figures.requests


def run_list() -> bool:
    return _rounds(silent, sessions=False)


def run_sessions() -> bool:
    return _rounds(silent, sessions=True)


def run_unreachable() -> bool:
    drop("127.0.2")
    return _rounds(dropping, sessions=False)


def run_dropping() -> bool:
    drop("127.0.2")
    with gateway([live(n) for n in range(100)] + [dropping(n) for n in range(100)]) as port:
        figures = Figures.of(crowd(port, 40, 48.0))
    print(f"  {figures}", flush=True)
    return _fits(figures)


def run_black() -> bool:
    lines = [live(n) for n in range(150)] + [live(n, "127.0.5") for n in range(50)]
    with gateway(lines) as port:
        before = Figures.of(crowd(port, 40, 10.0))
        print(f"  before: {before}", flush=True)
        drop("127.0.5")
        figures = Figures.of(crowd(port, 40, 48.0))
    print(f"  then: {figures}", flush=True)
    return _fits(figures)


def run_hedge() -> bool:
    lines = [live(n) for n in range(190)] + [falling_silent(n) for n in range(10)]
    for more in ("", ", hedge: 1s"):
        _silent.clear()
        with gateway(lines, more) as port:
            crowd(port, 8, 10.0)
            fall_silent()
            figures = Figures.of(crowd(port, 8, 20.0))
        print(f"  {more.strip(', ') or 'no hedge'}: {figures}", flush=True)
    return figures.p99 <= 1.5 and figures.served >= 0.995 * figures.requests


SCENARIOS: dict[str, Callable[[], bool]] = {
    "list": run_list,
    "sessions": run_sessions,
    "unreachable": run_unreachable,
    "dropping": run_dropping,
    "black": run_black,
    "hedge": run_hedge,
}


def _in_namespace(scenario: str) -> bool:
    """Run a scenario in a new network namespace; whether it has reached its goal."""
    unshare = ["unshare", "--net"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    command = [*unshare, sys.executable, "-m", "bench.recipe", "--here", scenario]
    return subprocess.run(command, check=False).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 0 if every scenario has reached its goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.scenario) - set(SCENARIOS):
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}")
    if given.here:
        raise_descriptor_limit()
        _prepare_namespace()
        with exits():
            return 0 if SCENARIOS[given.scenario[0]]() else 1
    reached = True
    for scenario in given.scenario or SCENARIOS:
        print(f"{scenario}:", flush=True)
        reached &= _in_namespace(scenario)
    print("every goal reached" if reached else "a goal was missed")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
