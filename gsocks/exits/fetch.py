"""Fetches a web page through an exit."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

import gevent
import h11

from gsocks.access.rules import ALLOW_ALL, Rules, Verdict
from gsocks.deadline import call_with_timeout
from gsocks.errors import ConnectFailed, FetchFailed, GsocksError
from gsocks.exits import trust as trust_system
from gsocks.exits.absolute import REFUSALS
from gsocks.exits.base import Exit
from gsocks.exits.forward import TakesAbsoluteForm, open_connection
from gsocks.http.message import header
from gsocks.http.origin import Origin, drain_and_close
from gsocks.http.url import WebUrl
from gsocks.http.write import END
from gsocks.net.tls import TlsStream
from gsocks.request import Command, Request
from gsocks.stream import Stream
from gsocks.units import format_size

#: redirects that are followed
MAX_REDIRECTS = 5

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
    """A server's response."""

    response: h11.Response
    body: bytes

    @property
    def status(self) -> int:
        return self.response.status_code

    def field(self, name: str) -> str | None:
        """The value of the first field called ``name`` (in lower case); None without one."""
        value = header(self.response, name.encode())
        return None if value is None else value.decode("latin-1")

    def check_status(self, expected: int | None = None) -> None:
        """Raise FetchFailed unless the status is ``expected``.

        None expects any status below 500: a page that has moved or that requires a login has come
        through the exit all the same.
        """
        if self.status != expected and (expected is not None or self.status >= 500):
            raise FetchFailed(f"answers with status {self.status}")


def fetch(
    url: WebUrl,
    exit_: Exit,
    *,
    fields: Fields = (),
    largest: int,
    timeout: float,
    trust: Callable[[], ssl.SSLContext] = trust_system,
    elsewhere: Exit | None = None,
    rules: Rules = ALLOW_ALL,
) -> Page:
    """The page at ``url``, after redirects.

    ``elsewhere``: the exit for redirects; None: the same one.  ``rules``: which servers it may be
    redirected to, the first one included, since a name's address may be another one by then; an
    exit that resolves names here has to ask them for the addresses.
    ``fields`` and the URL's login are sent to its server only, and not to others that it redirects
    to.  ``largest``: bytes of the body; ``timeout``: seconds for everything together.  Raises
    FetchFailed, which names a server only if it is another one.
    """
    page = call_with_timeout(
        timeout,
        _follow,
        url,
        (exit_, elsewhere or exit_),
        [*fields, *_login(url)],
        largest,
        trust,
        rules,
        on_timeout=None,
    )
    if page is None:
        raise FetchFailed(f"no whole answer within {timeout:g} s")
    return page


def _login(url: WebUrl) -> Fields:
    return [] if url.authorization is None else [("Authorization", url.authorization)]


def _follow(
    url: WebUrl,
    exits: tuple[Exit, Exit],
    fields: Fields,
    largest: int,
    trust: Callable[[], ssl.SSLContext],
    rules: Rules,
) -> Page:
    here, exit_ = url, exits[0]
    for _ in range(MAX_REDIRECTS + 1):
        same = here.origin == url.origin
        try:
            page = _ask(here, exit_, fields if same else (), largest, trust)
            there = _redirected(here, page)
        except FetchFailed as error:
            raise error if same else FetchFailed(f"{here}: {error}") from None
        if there is None:
            return page
        decision = rules.before_resolving(there.address, None)
        if decision.verdict is Verdict.DENY:
            raise FetchFailed(
                f"redirects to {there.address}, which is forbidden: {decision.reason}"
            )
        here, exit_ = there, exits[1]
    raise FetchFailed(f"redirects more than {MAX_REDIRECTS} times")


def _redirected(here: WebUrl, page: Page) -> WebUrl | None:
    location = page.field("location")
    if page.status not in _REDIRECTS or location is None:
        return None
    try:
        there = here.joined(location)
    except ValueError:
        raise FetchFailed("redirects to an invalid URL") from None
    if here.secure and not there.secure:
        raise FetchFailed("redirects from https:// to http://")
    return there


def _ask(
    url: WebUrl, exit_: Exit, fields: Fields, largest: int, trust: Callable[[], ssl.SSLContext]
) -> Page:
    try:
        if url.secure:
            page = _over_tls(url, exit_, fields, largest, trust)
        else:
            page = _in_plain(url, exit_, fields, largest)
    except GsocksError as error:
        raise FetchFailed(str(error)) from None
    if page.field("content-encoding") not in (None, "identity"):
        raise FetchFailed("answers in an encoding that was not requested")
    return page


def _over_tls(
    url: WebUrl, exit_: Exit, fields: Fields, largest: int, trust: Callable[[], ssl.SSLContext]
) -> Page:
    request = _request(url, fields)
    stream = exit_.connect(Request(Command.CONNECT, url.address)).stream
    with _ending(stream):
        secured = TlsStream(stream, trust(), url.address.host)
        secured.handshake()
        page = _exchange(secured, request, largest)
    gevent.spawn(drain_and_close, secured)
    return page


def _in_plain(url: WebUrl, exit_: Exit, fields: Fields, largest: int) -> Page:
    """In absolute form to an HTTP proxy, as long as it takes that."""
    page, proxy = _by_connection(url, exit_, fields, largest)
    if proxy is None:
        return page
    failure = proxy.failure_in(page.response, url.address)
    if failure is not None:
        raise failure
    if page.status not in REFUSALS:
        proxy.note_absolute_form(True)
    elif proxy.takes_absolute_form is None:
        return _compared(page, proxy, url, exit_, fields, largest)
    return page


def _compared(
    page: Page, proxy: TakesAbsoluteForm, url: WebUrl, exit_: Exit, fields: Fields, largest: int
) -> Page:
    """``page``, which may be a refusal of absolute form, or what a CONNECT brings."""
    try:
        other, _ = _by_connection(url, exit_, fields, largest, tunnel=True)
    except ConnectFailed:
        proxy.note_absolute_form(True)
        return page
    proxy.note_absolute_form(other.status == page.status)
    return other


def _by_connection(
    url: WebUrl, exit_: Exit, fields: Fields, largest: int, *, tunnel: bool = False
) -> tuple[Page, TakesAbsoluteForm | None]:
    """The page, and the proxy that was asked for it in absolute form."""
    request = _request(url, fields)
    asked = Request(Command.CONNECT, url.address)
    connection = open_connection(exit_, asked, tunnel=tunnel)
    if connection.proxy is not None:
        request = _request(url, fields, connection.authorization, absolute=True)
    with _ending(connection.stream):
        page = _exchange(connection.stream, request, largest)
    gevent.spawn(drain_and_close, connection.stream)
    return page, connection.proxy


@contextmanager
def _ending(stream: Stream) -> Iterator[None]:
    """Aborts ``stream`` if the block fails, times out or is killed."""
    try:
        yield
    except BaseException:
        stream.abort()
        raise


def _request(
    url: WebUrl, fields: Fields, authorization: str | None = None, *, absolute: bool = False
) -> h11.Request:
    ours = [
        ("Host", url.host),
        ("User-Agent", "gsocks"),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    if authorization is not None:
        ours.append(("Proxy-Authorization", authorization))
    target = url.origin + url.target if absolute else url.target
    try:
        return h11.Request(method="GET", target=target, headers=[*ours, *fields])
    except h11.LocalProtocolError:  # its text quotes the field
        raise FetchFailed("a field for the request that HTTP can't carry") from None


def _exchange(stream: Stream, request: h11.Request, largest: int) -> Page:
    origin = Origin(stream, request)
    origin.send([END])
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
