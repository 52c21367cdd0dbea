"""How each of many exits does, asked all at once."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gevent.pool import Pool

from gsocks.address import Address
from gsocks.errors import Fault, FetchFailed, GsocksError
from gsocks.exits import trust as trust_system
from gsocks.exits.base import Connected, Exit
from gsocks.fetch import fetch
from gsocks.http.url import WebUrl
from gsocks.request import Command, Request
from gsocks.rotation.roster import Member

#: what nobody can connect to (RFC 6761 section 6.4), and any proxy can be asked for
NOWHERE = Address("gsocks.invalid", 443)

#: bytes of a page; one that tells an address has a few hundred
_LARGEST = 65536

#: names that pages have for the address that asks them
_ADDRESSES = ("ip", "origin", "address", "query", "ip_addr")


class Question(NamedTuple):
    """What every exit is asked for: one of some pages, or else a destination.

    Neither: whether the exit itself answers as its kind does, and takes its credentials.  What
    else it would do is not known then.
    """

    #: the next one is asked for if one fails, which may be its own fault
    urls: tuple[WebUrl, ...] = ()
    dest: Address | None = None
    #: the status that a page must have; None: any below 500
    status: int | None = None


class Finding(NamedTuple):
    """How one exit has done."""

    member: Member
    #: why it doesn't work; None: it does
    trouble: str | None
    #: from the first word to the exit until it was connected
    seconds: float | None = None
    #: where it came from, if the page told that
    address: str | None = None


def survey(
    members: Iterable[Member],
    question: Question,
    *,
    at_once: int = 100,
    timeout: float = 10.0,
    trust: Callable[[], ssl.SSLContext] = trust_system,
) -> Iterator[Finding]:
    """What was found of each, in the order in which they have answered.

    ``timeout``: seconds for a page; to connect has the bound that the exits have themselves.
    """

    def examine(member: Member) -> Finding:
        way = _Timed(member.exit)
        try:
            address = _ask(way, question, timeout, trust)
        except GsocksError as error:
            return Finding(member, str(error).removeprefix(f"{member.label}: "), way.took)
        finally:
            member.exit.close()
        return Finding(member, None, way.took, address)

    pool = Pool(at_once)
    try:
        yield from pool.imap_unordered(examine, members)
    finally:
        pool.kill()


class _Timed:
    """An exit, and how long it took to connect."""

    def __init__(self, way: Exit) -> None:
        self._way = way
        self.label = way.label
        self.took: float | None = None

    def start(self) -> None:
        self._way.start()

    def connect(self, request: Request) -> Connected:
        began = time.monotonic()
        connected = self._way.connect(request)
        self.took = time.monotonic() - began
        return connected

    def answers(self, timeout: float) -> None:
        """Ask for what nobody can connect to.  Raises GsocksError if no proxy has answered."""
        began = time.monotonic()
        try:
            self._way.connect(Request(Command.CONNECT, NOWHERE)).stream.abort()
        except GsocksError as error:
            late = time.monotonic() - began >= timeout
            if error.fault is Fault.EXIT or (error.fault is Fault.UNCLEAR and late):
                raise
        self.took = time.monotonic() - began

    def close(self) -> None:
        self._way.close()


def _ask(
    way: _Timed, question: Question, timeout: float, trust: Callable[[], ssl.SSLContext]
) -> str | None:
    """The address that a page tells.  Raises GsocksError."""
    if question.dest is not None:
        way.connect(Request(Command.CONNECT, question.dest)).stream.abort()
        return None
    if not question.urls:
        way.answers(timeout)
        return None
    url, *others = question.urls
    try:
        return _address(_page(url, way, question.status, timeout, trust))
    except FetchFailed:
        if not others:
            raise
    return _ask(way, question._replace(urls=tuple(others)), timeout, trust)


def _page(
    url: WebUrl,
    way: _Timed,
    status: int | None,
    timeout: float,
    trust: Callable[[], ssl.SSLContext],
) -> bytes:
    page = fetch(url, way, largest=_LARGEST, timeout=timeout, trust=trust)
    if page.status != status and (status is not None or page.status >= 500):
        raise FetchFailed(f"the page answers with status {page.status}")
    return page.body


def _address(body: bytes) -> str | None:
    """The IP address that a page tells whoever asks it."""
    text = body.decode("utf-8", "replace").strip()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = text
    if isinstance(told, dict):
        told = next((told[name] for name in _ADDRESSES if name in told), None)
    try:
        return str(ipaddress.ip_address(told)) if isinstance(told, str) else None
    except ValueError:
        return None
