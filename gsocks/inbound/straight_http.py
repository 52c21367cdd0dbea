"""CONNECT of HTTP on the straight way (inbound/straight.py).

A head that is whole and plain has nothing to wait for, and a login that has succeeded before needs
no thread.  Whatever else a client sends is read again from its first byte by
inbound/http_session.py, and answered by it.
"""

from __future__ import annotations

import time
from typing import Protocol

from gsocks.access.login import Authenticator, Identity
from gsocks.address import Address
from gsocks.errors import GsocksError, LimitReached
from gsocks.handshake import Answer
from gsocks.http.head import MAX_FIELDS, target
from gsocks.http.message import has_any, parse_request
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.http_auth import log_in
from gsocks.inbound.http_client import Client, connected_answer
from gsocks.inbound.straight import StraightListener, StraightRequest, stop_watching
from gsocks.lru import LruCache
from gsocks.observe import Record
from gsocks.request import Request
from gsocks.rotation.connected import Outbound

#: fields that may make more of a CONNECT than its first line says
_ODD = frozenset({b"content-length", b"transfer-encoding", b"max-forwards"})


class HttpListener(StraightListener, Protocol):
    """The listener of straight connections that speak HTTP."""

    @property
    def anonymous(self) -> Identity | None:
        """The identity of all clients without credentials; None if they are not alike, or are
        asked for some."""

    def recalling_authenticator(self, client: Address) -> Authenticator:
        """The authenticator of ``client`` that never waits: a login that is not remembered is
        wrong to it."""

    def http_connect(
        self, dest: Address, payload: bytes, identity: Identity, record: Record
    ) -> Request:
        """The CONNECT of a client who has logged in."""


def begin(listener: HttpListener, connection: ClientConnection, received: bytes) -> bool:
    """Carry the CONNECT that ``received`` begins with; False if a greenlet has to understand it.

    The connection is one of those that have not asked for anything yet.
    """
    end = received.find(b"\r\n\r\n") + 4
    raw = received[:end]
    understood = _understand(listener, connection, raw) if end > 3 else None
    if understood is None:
        return False
    identity, dest = understood
    context = connection.context
    context.silent.release(connection)
    connection.watcher.callback = stop_watching
    connection.handshake_done()
    connection.requests += 1
    record = connection.new_record(time.monotonic())
    record.id = f"{connection.id}.{connection.requests}"
    active = StraightConnect(listener, connection, record, raw)
    active.begin(listener.http_connect(dest, received[end:], identity, record))
    return True


def _understand(
    listener: HttpListener, connection: ClientConnection, raw: bytes
) -> tuple[Identity, Address] | None:
    """Who asks by that head, and for which destination; None: a greenlet has to find out."""
    anonymous = listener.anonymous
    known = None if anonymous is None else _known.get(raw)
    if anonymous is not None and known is not None:
        return anonymous, known
    head = parse_request(raw)
    if head is None or head.method != b"CONNECT" or has_any(head, _ODD):
        return None
    if len(head.headers) > MAX_FIELDS:
        return None
    try:
        identity = log_in(head, listener.recalling_authenticator(connection.client))
        dest = target(head).dest
    except GsocksError:  # a greenlet raises it again, and waits for the login
        return None
    if len(raw) <= _MAX_KNOWN and not has_any(head, _SECRET):
        _known[raw] = dest
    return identity, dest


#: bytes of a head that is remembered
_MAX_KNOWN = 512
#: heads without secrets that were found plain, which come again and again, and their destinations
_known: LruCache[bytes, Address] = LruCache(1000)
_SECRET = frozenset({b"proxy-authorization", b"authorization", b"cookie"})


class StraightConnect(StraightRequest):
    """A CONNECT that the hub carries; ``raw`` is its head."""

    __slots__ = ("_raw",)

    def __init__(
        self,
        listener: StraightListener,
        connection: ClientConnection,
        record: Record,
        raw: bytes,
    ) -> None:
        super().__init__(listener, connection, record)
        self._raw = raw

    def begin(self, request: Request) -> None:
        """See :meth:`gsocks.inbound.straight.StraightRequest.begin`."""
        self._request = request
        self._note_request(request, Client.protocol, "", ())
        try:
            self._acquire_quota(request)
        except LimitReached:  # as the greenlet finds
            self._go_on(None)
        else:
            self._begin()

    def _success(self, outbound: Outbound) -> bytes:
        return connected_answer(outbound.exit)

    def _answer(self) -> Answer:
        client = Client(self._connection.sock, self._raw)
        client.read_request()  # which is whole, so that it does not wait
        return client
