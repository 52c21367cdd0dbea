"""A request that the hub connects, answers and relays, whatever the client speaks.

What a greenlet has to do instead begins where the hub has come to
(docs/adr/0023-the-straight-way.md).
"""

from __future__ import annotations

from collections.abc import Callable

from gsocks.errors import StreamError
from gsocks.inbound.active_request import ActiveRequest, Endable
from gsocks.request import Request
from gsocks.rotation.connected import Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.stream import Blocking, Bytes, is_nonblocking


class HubRequest(ActiveRequest):
    """A request that the hub carries; a subclass is a protocol of clients."""

    __slots__ = ("_request",)

    #: set before :meth:`_begin`
    _request: Request

    def _begin(self) -> None:
        """Connect: in a greenlet, if that has to wait for anything but the destination."""
        context = self._context
        if self.record.details is not self._request.details:
            self._request = self._with_details(self._request)
        try:
            begun = context.exit_group.begin(self._request, self)
        except BaseException:  # a fault of gsocks: the client must not wait for ever
            self.stopped()
            raise
        if begun is None or isinstance(begun, FirstAttempt):
            self._go_on(begun)
        else:
            context.connecting[self] = begun

    def attempted(self, label: str) -> None:
        """See :class:`gsocks.rotation.beginning.Begun`, as for the next two."""
        self.record.exit = label

    def connected(self, outbound: Outbound) -> None:
        context = self._context
        del context.connecting[self]
        try:
            outbound.stream = context.quota.limited(outbound.stream, self._request)
            if self.record.details is not None:
                outbound.describe(self.record.details)
            unsent = self._answer_now(outbound)
        except StreamError as error:
            outbound.abort()
            self.finish(f"client_{error.word}", str(error))
            self._client_left()
        except BaseException:  # a fault of gsocks
            outbound.abort()
            self.stopped()
            raise
        else:
            if unsent or not is_nonblocking(outbound.stream):
                self._in_greenlet(self._answer_on, outbound, bytes(unsent))
            else:
                client, ending = self._client()
                self._new_relay(client, outbound, ending).start((client, outbound.stream))

    def failed(self, first: FirstAttempt) -> None:
        del self._context.connecting[self]
        self._go_on(first)

    def stopped(self) -> None:
        """See :class:`gsocks.inbound.context.Connecting`."""
        self.finish("stopped")
        self._close()

    # --- in a greenlet ----------------------------------------------------------------------

    def _go_on(self, first: FirstAttempt | None) -> None:
        """Connect by what has to wait, behind the attempt that the hub has made."""
        self._in_greenlet(self._carry, first)

    def _answer_on(self, outbound: Outbound, unsent: bytes) -> None:
        """Send what there was no room for; relay, in this greenlet if the exit's stream blocks."""
        if self._answered(outbound, self._send, unsent):
            client, ending = self._client()
            self.relay(client, outbound, ending)
        else:
            self._left_in_greenlet()

    # --- the protocol -----------------------------------------------------------------------

    def _answer_now(self, outbound: Outbound) -> Bytes:
        """Tell the client that it is connected, without waiting; returns what had no room.

        Raises StreamError if the client has disconnected.
        """
        raise NotImplementedError

    def _send(self, unsent: bytes) -> None:
        """Send the rest of an answer.  Raises as :meth:`_answer_now` does."""
        raise NotImplementedError

    def _client(self) -> tuple[Blocking, Endable | None]:
        """The client's stream, which has the watcher of its descriptor if there is one still, and
        what ends with it."""
        raise NotImplementedError

    def _in_greenlet(self, function: Callable[..., None], *args: object) -> None:
        """Leave the client's descriptor to a greenlet, in which ``function`` is called."""
        raise NotImplementedError

    def _carry(self, first: FirstAttempt | None) -> None:
        """Connect, answer and relay in a greenlet, and end what belongs to the request."""
        raise NotImplementedError

    def _client_left(self) -> None:
        """The client was gone when it was to be answered.  Runs in the hub."""
        raise NotImplementedError

    def _left_in_greenlet(self) -> None:
        """The same in a greenlet."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close the client's connection.  Never blocks."""
        raise NotImplementedError
