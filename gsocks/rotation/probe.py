"""Probes many exits concurrently, once: for the command ``gsocks exits``."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from http import HTTPStatus
from typing import NamedTuple

from gevent.pool import Pool

from gsocks.address import Address
from gsocks.errors import ExitHungUp, Fault, FetchFailed, GsocksError
from gsocks.exits import trust as trust_system
from gsocks.exits.base import Connected, Exit
from gsocks.exits.fetch import fetch
from gsocks.exits.forward import HttpConnection, key_for, open_connection
from gsocks.http.url import WebUrl
from gsocks.request import Command, Request
from gsocks.rotation.geo import Countries
from gsocks.rotation.outbound_address import address_in
from gsocks.rotation.pages import check
from gsocks.rotation.roster import Member
from gsocks.settings import ExpectSettings

#: a destination that does not exist (RFC 6761 section 6.4), for which any proxy can be asked
NOWHERE = Address("gsocks.invalid", 443)

#: bytes of a page; one that returns an address has a few hundred
_MAX_SIZE = 65536


#: what web servers that are no proxies answer to CONNECT, and no proxy for a name that is missing
_NO_PROXY = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
)


class ProbeTarget(NamedTuple):
    """What is requested through every exit: the first page that works, or a destination.

    Neither: whether the exit itself speaks its protocol and accepts its credentials.  Whether it
    reaches anything is not known then.
    """

    #: if one fails, which may be its own fault, the next one is tried
    urls: tuple[WebUrl, ...] = ()
    dest: Address | None = None
    #: what a page must be like
    expect: ExpectSettings = ExpectSettings()
    #: tells the country of an address that a page has returned; None: it is not known
    countries: Countries | None = None


class ProbeResult(NamedTuple):
    """The result of one exit."""

    member: Member
    #: why it doesn't work; None: it does, or it has answered
    trouble: str | None
    #: from the beginning of the connection to the exit until it has connected or answered
    seconds: float | None = None
    #: the source address that the page has seen, if it returned one
    address: str | None = None
    #: the country of that address
    country: str | None = None
    #: whether nothing was to be reached through it, so that it is not known whether it works
    only_answers: bool = False


def probe(
    members: Iterable[Member],
    wanted: ProbeTarget,
    *,
    at_once: int = 100,
    timeout: float = 10.0,
    trust: Callable[[], ssl.SSLContext] = trust_system,
) -> Iterator[ProbeResult]:
    """The result of each exit, in the order in which they finish.

    ``timeout``: seconds for a page; connecting is bounded by the exits themselves.
    """

    def examined(member: Member) -> ProbeResult:
        try:
            return examine(member, wanted, timeout, trust)
        finally:
            member.exit.close()

    pool = Pool(at_once)
    try:
        yield from pool.imap_unordered(examined, members)
    finally:
        pool.kill()


def examine(
    member: Member,
    wanted: ProbeTarget,
    timeout: float = 10.0,
    trust: Callable[[], ssl.SSLContext] = trust_system,
) -> ProbeResult:
    """The result of one exit, which may be in use."""
    timed = _Timed(member.exit)
    try:
        address = _probe(timed, wanted, timeout, trust)
        timed.answered()
    except GsocksError as error:
        return ProbeResult(member, str(error).removeprefix(f"{member.label}: "), timed.took)
    country = None
    if address is not None and wanted.countries is not None:
        country = wanted.countries.of(address)
    only_answers = wanted.dest is None and not wanted.urls
    return ProbeResult(member, None, timed.took, address, country, only_answers)


class _Timed:
    """An exit that measures how long it takes to connect."""

    def __init__(self, exit_: Exit) -> None:
        self._exit = exit_
        self.label = exit_.label
        #: seconds
        self.took: float | None = None
        #: when a request in absolute form was begun, whose answer alone shows a connection
        self._asked: float | None = None

    def connect(self, request: Request) -> Connected:
        began = time.monotonic()
        connected = self._exit.connect(request)
        self.took = time.monotonic() - began
        return connected

    def forward(
        self, request: Request, *, tunnel: bool = False, once: bool = False, alone: bool = False
    ) -> HttpConnection:
        """See :meth:`gsocks.exits.forward.Forwards.forward`."""
        began = time.monotonic()
        connection = open_connection(self._exit, request, tunnel=tunnel, once=once, alone=alone)
        self.took = time.monotonic() - began
        self._asked = None if connection.proxy is None else began
        return connection

    def forward_key(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Forwards.forward_key`."""
        return key_for(self._exit, request)

    def answered(self) -> None:
        """A page has come."""
        if self._asked is not None:
            self.took = time.monotonic() - self._asked

    def answers(self, timeout: float) -> None:
        """See :func:`ask_for_nothing`."""
        began = time.monotonic()
        ask_for_nothing(self._exit, timeout)
        self.took = time.monotonic() - began

    def close(self) -> None:
        self._exit.close()


def ask_for_nothing(exit_: Exit, timeout: float) -> bool:
    """Request a destination that doesn't exist: what comes back is the exit's own answer.

    True if the exit speaks its protocol and accepts its credentials; False if that is not known,
    since it has hung up, as some proxies do when a destination fails.  Whether it reaches anything
    is not known either way.  Raises GsocksError if it has failed by itself, or has not answered
    within ``timeout`` seconds, by which it must be bounded itself.
    """
    began = time.monotonic()
    try:
        exit_.connect(Request(Command.CONNECT, NOWHERE)).stream.abort()
    except ExitHungUp:
        return False
    except GsocksError as error:
        late = time.monotonic() - began >= timeout
        if error.status in _NO_PROXY or error.fault is Fault.EXIT:
            raise
        if error.fault is Fault.UNCLEAR and late:
            raise
    return True


def _probe(
    exit_: _Timed, wanted: ProbeTarget, timeout: float, trust: Callable[[], ssl.SSLContext]
) -> str | None:
    """The address that a page returns.  Raises GsocksError."""
    if wanted.dest is not None:
        exit_.connect(Request(Command.CONNECT, wanted.dest)).stream.abort()
        return None
    if not wanted.urls:
        exit_.answers(timeout)
        return None
    url, *others = wanted.urls
    try:
        page = fetch(url, exit_, largest=_MAX_SIZE, timeout=timeout, trust=trust)
        check(page, wanted.expect)
        return address_in(page.body)
    except FetchFailed:
        if not others:
            raise
    return _probe(exit_, wanted._replace(urls=tuple(others)), timeout, trust)
