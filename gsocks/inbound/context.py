"""What the connections and requests of one listener share."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from gevent.event import Event

from gsocks.address import Address
from gsocks.errors import StreamError
from gsocks.exits.base import Attempt
from gsocks.inbound.admission import Admission
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.silent import SilentConnections
from gsocks.observe import Observer, Record
from gsocks.relay import Relay
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts

log = logging.getLogger("gsocks.inbound")


class Inbound(Protocol):
    """What clients come in by: a listener, or a socket for their datagrams."""

    #: what it is called in the access log
    name: str
    timeouts: Timeouts

    @property
    def bound(self) -> Address:
        """Where it listens; known once it is started."""

    @property
    def connections(self) -> int:
        """How many are open."""

    def start(self) -> None:
        """Listen and serve, from greenlets of this thread's hub; returns at once."""

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening; reset what is still open after ``timeout`` seconds (default 1)."""


class Connecting(Protocol):
    """A request that the hub connects."""

    def stopped(self) -> None:
        """Its attempt was cancelled, since the listener stops."""


class ListenerContext:
    """The parts of a listener that its connections and requests use.

    ``name`` is the listener's in the access log.
    """

    __slots__ = (
        "_observer",
        "admission",
        "all_closed",
        "connecting",
        "exit_group",
        "name",
        "quota",
        "relays",
        "silent",
        "stopping",
        "timeouts",
        "wants_details",
        "wants_story",
    )

    def __init__(
        self,
        name: str,
        exit_group: ExitGroup,
        admission: Admission,
        silent: SilentConnections[Any],
        quota: UserQuota,
        timeouts: Timeouts,
        observer: Observer,
    ) -> None:
        self.name = name
        self.exit_group = exit_group
        self.admission = admission
        self.silent = silent
        self.quota = quota
        self.timeouts = timeouts
        self._observer = observer
        #: whether records have details
        self.wants_details: bool = getattr(observer, "wants_details", False)
        self.wants_story: bool = getattr(observer, "wants_story", True)
        #: whether the listener accepts no more, and open connections are to end soon
        self.stopping = False
        #: requests that the hub connects, and the attempt of each
        self.connecting: dict[Connecting, Attempt] = {}
        #: those that run
        self.relays: set[Relay] = set()
        #: set while no connection is open and no relay runs
        self.all_closed = Event()
        self.all_closed.set()

    def note_opened(self) -> None:
        """A connection was admitted."""
        self.all_closed.clear()

    def note_closed(self) -> None:
        """A connection or a relay is closed."""
        # the connection of a tunnel may be closed before its last relay has reported its end
        if not self.admission.connections and not self.relays:
            self.all_closed.set()

    def report(self, record: Record) -> None:
        """Give ``record`` to the observer."""
        try:
            self._observer.ended(record)
        except Exception:
            # an observer is an embedding program's code; its mistakes must not harm a connection
            log.exception("the observer of %s failed", self.name)

    def stop_connecting(self) -> None:
        """End every request that the hub connects."""
        while self.connecting:
            request, attempt = self.connecting.popitem()
            attempt.cancel()
            request.stopped()

    def abort_relays(self, error: StreamError) -> None:
        """Reset every open relay."""
        for relay in list(self.relays):
            relay.abort(error)
