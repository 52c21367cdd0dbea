"""The choice of an exit inside a program: a destination goes in, a connected socket comes out.

    gateway = Gateway(["socks5://10.0.0.7:1080", "gsocks://KEY@vps.example.com:8388"])
    sock = gateway.connect("example.com", 443, session="cart-17")

Nothing listens, and nothing is patched.  What comes out is a socket of gevent's, whichever exit
serves it: of one that has a socket itself (direct, SOCKS, HTTP) it is that one, and of others it is
one end of a bridge (gsocks/bridge.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import gevent
from gevent.socket import socket

from gsocks.address import Address
from gsocks.assemble import SomeExit, SomeRules, make_offers, make_rules, make_ways_out
from gsocks.bridge import Bridge, loopback_pair
from gsocks.checks import CheckSettings
from gsocks.closing import HasFileno, OpenSockets
from gsocks.dial import Resolver
from gsocks.errors import (
    ConfigError,
    ConnectTimeout,
    LimitReached,
    ShuttingDown,
    connect_failure,
)
from gsocks.exits import Ground
from gsocks.limits import Timeouts
from gsocks.request import Command, Request
from gsocks.rotation.health import HealthSettings
from gsocks.rotation.session import Sessions
from gsocks.stream import SocketStream
from gsocks.ways_out import Way, WaysOut
from gsocks.wish import Wish, as_country, as_exit, as_tag
from gsocks.wording import shown

#: characters; a session may be called otherwise than in a user name, with hyphens for one
LONGEST_SESSION = 255


class _Served(NamedTuple):
    """An open socket."""

    #: the exit's name
    exit: str
    #: the destination's host
    host: str


class Gateway:
    """Opens connections by exits that take turns.

    ``exits`` and ``rotate`` are as in the config; or ``exits`` is a WaysOut, which a gateway may
    share with doors of its thread.  ``health``, ``checks``, ``sessions`` and
    ``tries`` are as for :func:`gsocks.assemble.make_ways_out`.

    ``rules`` are as at a door, too: left out, private addresses are denied, because what a program
    fetches is often named by others.  ``rules=["allow all"]`` lets it reach whatever this machine
    does.

    It begins its work when it is first used, and serves the thread that does so, from any number
    of greenlets: another thread needs a gateway of its own, and so does a child process.

    Raises ConfigError for what can't be used.
    """

    def __init__(
        self,
        exits: WaysOut | Iterable[SomeExit] = ("direct",),
        *,
        rules: SomeRules = None,
        rotate: str = "round_robin",
        timeouts: Timeouts = Timeouts(),
        pool_size: int = 8,
        pool_max_idle: float = 300.0,
        health: HealthSettings = HealthSettings(),
        checks: CheckSettings = CheckSettings(),
        sessions: Sessions | None = None,
        tries: int = 3,
    ) -> None:
        self._ground = Ground(
            make_rules(rules),
            Resolver(),
            timeouts=timeouts,
            pool_size=pool_size,
            pool_max_idle=pool_max_idle,
        )
        #: the exits, to be asked about and to be banned
        self.ways_out = make_ways_out(
            exits,
            rotate=rotate,
            timeouts=timeouts,
            health=health,
            checks=checks,
            sessions=sessions,
            tries=tries,
            ground=self._ground,
        )
        self._sockets: OpenSockets[_Served] | None = None
        self._closed = False

    def connect(
        self,
        host: str,
        port: int,
        *,
        session: str | None = None,
        country: str | None = None,
        tags: Iterable[str] = (),
        exit: str | None = None,  # noqa: A002 - as in a config
        lifetime: float | None = None,
        timeout: float | None = None,
    ) -> socket:
        """A socket that is connected to ``host`` and ``port``.

        Connections of the same ``session`` have the same exit, for ``lifetime`` seconds from the
        first of them, or as long as the exits' Sessions say.  ``country``, ``tags`` and ``exit``
        say where the exit has to be, what has to be said of it, and which one it has to be.

        ``timeout`` bounds the connecting, and is the socket's timeout from then on, as with
        ``socket.create_connection``; ``timeouts.connect`` bounds the connecting in any case.

        Raises GsocksError: BadAddress, ConfigError for a wish that can't be one, or a kind of
        ConnectFailed.
        """
        wish = _wish(session, lifetime, country, tags, exit)
        request = Request(Command.CONNECT, Address.of(host, port), wish=wish)
        sockets = self._begin()
        sock = gevent.with_timeout(timeout, self._connect, request, sockets, timeout_value=None)
        if sock is None:
            raise ConnectTimeout(f"{request.dest}: not connected within {timeout:g} s")
        if timeout is not None:
            sock.settimeout(timeout)
        return sock

    def exit_of(self, sock: HasFileno) -> str:
        """The name of the exit that serves a socket, or an SSLSocket around it.

        Raises ConfigError once it is closed, and for a socket that is none of this gateway's.
        """
        return self._served(sock).exit

    def report(self, served: HasFileno | str, ok: bool, domain: str | None = None) -> None:
        """Tell what came of an exit's service, which the exit can't know: a captcha, a ban.

        ``served``: a socket, or the name of the exit; ``domain``: for whom it served, and with a
        socket that is its destination.  After a few failures the exit isn't asked for that domain
        for a while, and a session that has it there gets another one.  Raises NoExit,
        ConfigError.
        """
        if isinstance(served, str):
            if domain is None:
                raise ConfigError("whoever reports an exit by its name has to name the domain")
            self.ways_out.report(served, ok, domain)
        else:
            known = self._served(served)
            self.ways_out.report(known.exit, ok, domain or known.host)

    def rotate(self, session: str) -> None:
        """Give a session another exit from its next connection on."""
        self.ways_out.rotate(None, session)

    def update(self, exits: Iterable[SomeExit]) -> None:
        """Have these exits from now on; no connection ends by it.

        What is known of those that stay is kept, and so are their sessions.  Raises ConfigError,
        and keeps what it has.
        """
        self.ways_out.update(make_offers(exits, self._ground, self.ways_out))

    def close(self) -> None:
        """Let go what is idle, such as tunnels; sockets that are open stay so."""
        if self._closed:
            return
        self._closed = True
        if self._sockets is not None:
            self.ways_out.close()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> OpenSockets[_Served]:
        """Start the exits, but not before they are needed: a process may fork until then."""
        if self._closed:
            raise ShuttingDown("the gateway is closed")
        if self._sockets is None:
            self._sockets = OpenSockets()
            self.ways_out.start()
        elif not self._sockets.here:
            raise ConfigError("a gateway serves one thread: another one needs its own")
        return self._sockets

    def _served(self, sock: HasFileno) -> _Served:
        served = None if self._sockets is None else self._sockets.find(sock)
        if served is None:
            raise ConfigError("the socket is closed, or is not one of this gateway's")
        return served

    def _connect(self, request: Request, sockets: OpenSockets[_Served]) -> socket:
        try:
            way = self.ways_out.connect(request, _tell_nobody)
        except LimitReached:
            # perhaps not, once it has been seen what the program has closed
            if not sockets.look():
                raise
            way = self.ways_out.connect(request, _tell_nobody)
        try:
            sock, closed = _as_socket(way)
        except OSError as error:
            way.stream.abort()
            way.release()
            raise connect_failure(error) from None
        except BaseException:
            way.stream.abort()
            way.release()
            raise
        sockets.add(sock, _Served(way.name, request.dest.host), closed)
        return sock


def _wish(
    session: str | None,
    lifetime: float | None,
    country: str | None,
    tags: Iterable[str],
    exit_: str | None,
) -> Wish:
    if session is not None and not 0 < len(session) <= LONGEST_SESSION:
        raise ConfigError(f"a session has a name of 1 to {LONGEST_SESSION} characters")
    if lifetime is not None and not lifetime > 0:
        raise ConfigError(f"{shown(lifetime)} is no lifetime (expected seconds)")
    try:
        return Wish(
            session,
            lifetime,
            None if country is None else as_country(country),
            tuple(sorted({as_tag(tag) for tag in tags})),
            None if exit_ is None else as_exit(exit_),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _as_socket(way: Way) -> tuple[socket, Callable[[], None]]:
    """A way's stream as a socket, and what is to be done when that is closed.  Raises OSError."""
    if isinstance(way.stream, SocketStream):
        return way.stream.detach(), way.release
    near, far = loopback_pair()
    return near, Bridge(far, way.stream, way.release).left


def _tell_nobody(_label: str) -> None:
    """Who asks hears what came of it, and not on which ways."""
