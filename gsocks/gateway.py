"""Exits and rotation inside a Python program: a destination in, a connected socket out.

    gateway = Gateway(["socks5://10.0.0.7:1080", "gsocks://KEY@vps.example.com:8388"])
    sock = gateway.connect("example.com", 443, session="cart-17")

Nothing listens, and nothing is patched.  The result is a gevent socket with every kind of exit: the
exit's own socket if it has one (direct, SOCKS, HTTP), otherwise one end of a bridge
(gsocks/inbound/bridge.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, NoReturn

import gevent
from gevent.socket import socket

from gsocks.address import Address
from gsocks.errors import (
    ConfigError,
    ConnectTimeout,
    LimitReached,
    ShuttingDown,
    connect_failure,
)
from gsocks.exits import ExitDeps
from gsocks.inbound.bridge import Bridge, loopback_pair
from gsocks.messages import shown, unknown_keyword
from gsocks.net.closing import HasFileno, SocketTracker
from gsocks.net.resolve import Resolver
from gsocks.request import Command, ExitSelector, Request, as_country, as_exit, as_tag
from gsocks.rotation.build import SomeExit, SomeRules, make_exit_group, make_offers, make_rules
from gsocks.rotation.given_settings import given, listed
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.session import Sessions
from gsocks.settings import (
    CheckSettings,
    DnsSettings,
    HealthSettings,
    PerHostSettings,
    PoolSettings,
    Timeouts,
)
from gsocks.sock import as_gevent_socket
from gsocks.stream import SocketStream

#: characters of a session's name, which may contain more kinds of them than in a user name
MAX_SESSION = 255


class _Served(NamedTuple):
    """An open socket."""

    #: the exit's name
    exit: str
    #: the destination's host
    host: str


class Gateway:
    """Opens connections through rotating exits.

    ``exits`` and ``rotate`` are as in the config; or ``exits`` is an ExitGroup, which a gateway may
    share with listeners of its thread.  ``health``, ``checks``, ``sessions`` and
    ``tries``, ``hedge`` and ``per_host`` are as for :func:`gsocks.rotation.build.make_exit_group`.
    Settings may be mappings as in the config: ``timeouts={"connect": "5s"}``.
    ``dns``: how names are looked up; gateways and listeners of one program have a cache each.

    ``rules`` are as in the config, too: by default private addresses are denied, because the URLs
    that a program fetches often come from other people.  ``rules=["allow all"]`` allows all that
    this machine can reach.

    It starts when it is first used, and serves the thread that uses it, from any number of
    greenlets: another thread needs its own gateway, and so does a child process.

    Raises ConfigError for invalid arguments, TypeError for those of another type.
    """

    def __init__(
        self,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        *,
        rules: SomeRules = None,
        rotate: str = "round_robin",
        timeouts: Timeouts | Mapping[str, object] = Timeouts(),
        pool: PoolSettings | Mapping[str, object] = PoolSettings(),
        health: HealthSettings | Mapping[str, object] = HealthSettings(),
        checks: CheckSettings | Mapping[str, object] = CheckSettings(),
        sessions: Sessions | None = None,
        tries: int = 3,
        hedge: float | None = None,
        per_host: PerHostSettings | Mapping[str, object] = PerHostSettings(),
        dns: DnsSettings | Mapping[str, object] = DnsSettings(),
        **unknown: NoReturn,
    ) -> None:
        for keyword in unknown:
            known = [*inspect.signature(Gateway).parameters][:-1]
            raise unknown_keyword("Gateway", keyword, known)
        timeouts = given("Gateway", "timeouts", timeouts, Timeouts)
        pool = given("Gateway", "pool", pool, PoolSettings)
        health = given("Gateway", "health", health, HealthSettings)
        checks = given("Gateway", "checks", checks, CheckSettings)
        per_host = given("Gateway", "per_host", per_host, PerHostSettings)
        dns = given("Gateway", "dns", dns, DnsSettings)
        self._exit_deps = ExitDeps(
            make_rules(rules),
            Resolver(settings=dns),
            timeouts=timeouts,
            pool=pool,
        )
        #: the exits, to inspect and to ban them
        self.exit_group = make_exit_group(
            exits,
            rotate=rotate,
            timeouts=timeouts,
            health=health,
            checks=checks,
            sessions=sessions,
            tries=tries,
            hedge=hedge,
            per_host=per_host,
            deps=self._exit_deps,
        )
        self._sockets: SocketTracker[_Served] | None = None
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
        strict: bool = False,
        timeout: float | None = None,
    ) -> socket:
        """A socket that is connected to ``host`` and ``port``.

        Connections of the same ``session`` have the same exit, for ``lifetime`` seconds from the
        first of them, or as long as the Sessions of the exits have it; with ``strict`` they fail
        rather than use another one.  ``country``, ``tags`` and
        ``exit`` select exits by their country, by all of these tags and by name.

        ``timeout`` bounds the connect, and is the socket's timeout from then on, as with
        ``socket.create_connection``; ``timeouts.connect`` bounds the connect in any case.

        Raises GsocksError: BadAddress, ConfigError for an invalid selector, or a subclass of
        ConnectFailed.
        """
        selector = _selector(session, lifetime, country, tags, exit, strict=strict)
        request = Request(Command.CONNECT, Address.of(host, port), selector=selector)
        sockets = self._start()
        sock = gevent.with_timeout(timeout, self._connect, request, sockets, timeout_value=None)
        if sock is None:
            raise ConnectTimeout(f"{request.dest}: not connected within {timeout:g} s")
        if timeout is not None:
            sock.settimeout(timeout)
        return sock

    def exit_of(self, sock: HasFileno) -> str:
        """The name of the exit that serves a socket, or an SSLSocket around it.

        Raises ConfigError once it is closed, and for a socket of another gateway.
        """
        return self._served(sock).exit

    def report(self, served: HasFileno | str, ok: bool, domain: str | None = None) -> None:
        """Report the quality of an exit, which gsocks can't see itself: a captcha, a ban.

        ``served``: a socket, or the name of the exit; ``domain``: the site for which it served, by
        default the destination of the socket.  After a few failures the exit isn't used for that
        domain for some time, and a session that has it there gets another one.  Raises NoExit,
        ConfigError.
        """
        if isinstance(served, str):
            if domain is None:
                raise ConfigError("a report of an exit by its name needs the domain")
            self.exit_group.report(served, ok, domain)
        else:
            known = self._served(served)
            self.exit_group.report(known.exit, ok, domain or known.host)

    def rotate(self, session: str) -> None:
        """Give a session another exit from its next connection on."""
        self.exit_group.rotate(None, session)

    def update(self, exits: Iterable[SomeExit]) -> None:
        """Replace the exits; open connections are not affected.

        Exits that remain keep their health, counters and sessions.  Raises ConfigError, and then
        changes nothing.
        """
        self.exit_group.update(make_offers(exits, self._exit_deps, self.exit_group))

    def close(self) -> None:
        """Close what is idle, such as pooled tunnels; open sockets stay open."""
        if self._closed:
            return
        self._closed = True
        self._exit_deps.resolver.close()
        if self._sockets is not None:
            self.exit_group.close()

    def __repr__(self) -> str:
        sockets = 0 if self._sockets is None else len(self._sockets)
        state = "closed" if self._closed else f"{sockets} open sockets"
        return f"<Gateway of {len(self.exit_group.roster)} exits, {state}>"

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> SocketTracker[_Served]:
        """Start the exits at the first use, so that a process may fork before."""
        if self._closed:
            raise ShuttingDown("the gateway is closed")
        if self._sockets is None:
            self._sockets = SocketTracker()
            self.exit_group.start()
        elif not self._sockets.here:
            raise ConfigError("a gateway serves one thread: another thread needs its own")
        return self._sockets

    def _served(self, sock: HasFileno) -> _Served:
        served = None if self._sockets is None else self._sockets.find(sock)
        if served is None:
            raise ConfigError("the socket is closed, or is not one of this gateway's")
        return served

    def _connect(self, request: Request, sockets: SocketTracker[_Served]) -> socket:
        try:
            outbound = self.exit_group.connect(request, _ignore_attempt)
        except LimitReached:
            # sockets that the program has closed may not have been noticed yet
            if not sockets.poll():
                raise
            outbound = self.exit_group.connect(request, _ignore_attempt)
        try:
            with outbound:
                sock, closed = _as_socket(outbound)
        except OSError as error:
            raise connect_failure(error) from None
        sockets.add(sock, _Served(outbound.name, request.dest.host), closed)
        return sock


def _selector(
    session: str | None,
    lifetime: float | None,
    country: str | None,
    tags: Iterable[str],
    exit_: str | None,
    *,
    strict: bool,
) -> ExitSelector:
    if session is not None and not 0 < len(session) <= MAX_SESSION:
        raise ConfigError(f"a session has a name of 1 to {MAX_SESSION} characters")
    if lifetime is not None and not lifetime > 0:
        raise ConfigError(f"{shown(lifetime)} is no lifetime (expected seconds)")
    try:
        return ExitSelector(
            session,
            lifetime,
            None if country is None else as_country(country),
            tuple(sorted({as_tag(tag) for tag in listed(tags, "tags")})),
            None if exit_ is None else as_exit(exit_),
            strict,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _as_socket(outbound: Outbound) -> tuple[socket, Callable[[], None]]:
    """The stream as a socket, and the function to call when it is closed.  Raises OSError."""
    if isinstance(outbound.stream, SocketStream):
        outbound.answered()  # its bytes are not seen: the exit's word has to do
        return as_gevent_socket(outbound.stream.detach()), outbound.release
    near, far = loopback_pair()
    return near, Bridge(far, outbound.stream, outbound.release).left


def _ignore_attempt(_label: str) -> None:
    """The caller gets the result, and no report of each exit that was tried."""
