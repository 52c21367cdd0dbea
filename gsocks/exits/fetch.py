"""A page of the web, had through an exit."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

import gevent
import h11

from gsocks.errors import FetchFailed, GsocksError
from gsocks.exits import trust as trust_system
from gsocks.exits.base import Exit
from gsocks.exits.tls import TlsStream
from gsocks.http.head import header
from gsocks.http.origin import Origin, take_leave
from gsocks.http.url import WebUrl
from gsocks.request import Command, Request
from gsocks.stream import Stream
from gsocks.units import format_size

#: redirects that are followed
MOST_REDIRECTS = 5

#: field names and values
Fields: TypeAlias = Iterable[tuple[str, str]]

_REDIRECTS = (
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
)


class Page(NamedTuple):
    """What a server answered."""

    response: h11.Response
    body: bytes

    @property
    def status(self) -> int:
        return self.response.status_code

    def field(self, name: str) -> str | None:
        """The value of the first field called ``name``, in small letters."""
        value = header(self.response, name.encode())
        return None if value is None else value.decode("latin-1")


def fetch(
    url: WebUrl,
    way: Exit,
    *,
    fields: Fields = (),
    largest: int,
    timeout: float,
    trust: Callable[[], ssl.SSLContext] = trust_system,
) -> Page:
    """What ``url`` shows, wherever its server redirects to.

    ``fields`` are told to that server only, and not to others that it may redirect to; so is the
    URL's login.  ``largest``: bytes of the body; ``timeout``: seconds for all of it.  Raises
    FetchFailed, which names a server only if it is another one.
    """
    page = gevent.with_timeout(
        timeout, _follow, url, way, [*fields, *_login(url)], largest, trust, timeout_value=None
    )
    if page is None:
        raise FetchFailed(f"no whole answer within {timeout:g} s")
    return page


def _login(url: WebUrl) -> Fields:
    return [] if url.authorization is None else [("Authorization", url.authorization)]


def _follow(
    url: WebUrl, way: Exit, fields: Fields, largest: int, trust: Callable[[], ssl.SSLContext]
) -> Page:
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        same = here.origin == url.origin
        try:
            page = _ask(here, way, fields if same else (), largest, trust)
            there = _redirected(here, page)
        except FetchFailed as error:
            raise error if same else FetchFailed(f"{here}: {error}") from None
        if there is None:
            return page
        here = there
    raise FetchFailed(f"redirects more than {MOST_REDIRECTS} times")


def _redirected(here: WebUrl, page: Page) -> WebUrl | None:
    location = page.field("location")
    if page.status not in _REDIRECTS or location is None:
        return None
    try:
        there = here.joined(location)
    except ValueError:
        raise FetchFailed("redirects to what is no URL") from None
    if here.secure and not there.secure:
        raise FetchFailed("redirects from https:// to http://")
    return there


def _ask(
    url: WebUrl, way: Exit, fields: Fields, largest: int, trust: Callable[[], ssl.SSLContext]
) -> Page:
    stream: Stream | None = None
    try:
        request = _request(url, fields)
        stream = way.connect(Request(Command.CONNECT, url.address)).stream
        if url.secure:
            secured = stream = TlsStream(stream, trust(), url.address.host)
            secured.handshake()
        page = _exchange(stream, request, largest)
    except GsocksError as error:
        if stream is not None:
            stream.abort()
        raise FetchFailed(str(error)) from None
    except BaseException:  # out of time, or killed
        if stream is not None:
            stream.abort()
        raise
    gevent.spawn(take_leave, stream)
    if page.field("content-encoding") not in (None, "identity"):
        raise FetchFailed("answers in an encoding that nobody asked for")
    return page


def _request(url: WebUrl, fields: Fields) -> h11.Request:
    ours = [
        ("Host", url.host),
        ("User-Agent", "gsocks"),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    try:
        return h11.Request(method="GET", target=url.target, headers=[*ours, *fields])
    except h11.LocalProtocolError:  # its words repeat the field
        raise FetchFailed("a field for the request that HTTP can't carry") from None


def _exchange(stream: Stream, request: h11.Request, largest: int) -> Page:
    origin = Origin(stream, request)
    origin.send([h11.EndOfMessage()])
    response: h11.Response | None = None
    body: list[bytes] = []
    size = 0
    while True:
        for event in origin.receive():
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body.append(event.data)
                size += len(event.data)
                if size > largest:
                    raise FetchFailed(f"more than {format_size(largest)}")
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                return Page(response, b"".join(body))
