"""The exit through a gsocks server: a stream in a tunnel from the pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, cast

import gevent

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import Cipher, Key
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    ClientError,
    ConnectFailed,
    ConnectTimeout,
    ExitFailed,
    ExitUnproven,
    GsocksError,
    LimitReached,
    OutOfResources,
    PeerVanished,
    StreamClosed,
    StreamError,
    StreamReset,
    Truncated,
    Withdrawn,
)
from gsocks.exits.base import Connected, Dials, PendingBind
from gsocks.net.acknowledged import is_unanswered
from gsocks.net.datagram import with_source
from gsocks.net.deadlines import Deadlines
from gsocks.pool import Pool
from gsocks.request import Request
from gsocks.settings import PoolSettings
from gsocks.stream import READ, WRITE, Bytes, ScratchBuffers, Wait, scratch_of_this_hub
from gsocks.transport.client import ClientTransport
from gsocks.transport.layers import LayeredSocket
from gsocks.transport.tunnels import LayeredClientTunnel
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream
from gsocks.tuples import new_tuple

#: tunnels in which one request is sent to the server, at most.  Where each but the last has ended
#: unanswered, the last one is opened for the request, and so is none that has died while it waited.
MAX_TUNNELS = 3

#: how a tunnel ends unanswered that the server has closed (EOF, RST), or whose path is dead: the
#: kernel says so, or :meth:`TunnelExit._doubt` has closed it.  The RESET of a frame is none of
#: these, since it has no place before OPENED.
_UNANSWERED = (Truncated, StreamReset, PeerVanished, StreamClosed)


class TunnelExit:
    """Opens streams at the gsocks server ``server``.

    ``timeout``: seconds for the answer to a request that was sent early (``fast_open``);
    ``reach_timeout``: for the connection to the server, the handshakes of its ``transport`` and the
    key agreement together.
    """

    #: seconds in which the server's machine must acknowledge a request that is put on an idle
    #: tunnel; TCP sends it three times in that time, and would retry for two minutes
    acknowledged_within = 2.0
    #: seconds in which a client whose protocol lets it send first does so after it has received
    #: success; a request waits no longer for bytes that are sent with it (``fast_open``)
    first_words_within = 0.005
    #: seconds for which requests fail at once after the server has not proved to know the key; the
    #: pool tries more often
    unproven_for = 20.0

    def __init__(
        self,
        server: Address,
        key: Key,
        dialer: Dials,
        *,
        ciphers: Cipher = Cipher.SECRETBOX,
        timeout: float = 10.0,
        reach_timeout: float = 3.0,
        pool: PoolSettings = PoolSettings(),
        transport: ClientTransport | None = None,
    ) -> None:
        self.label = f"gsocks://{server}"
        self._server = server
        self._key = key
        self._dialer = dialer
        self._ciphers = ciphers
        self._timeout = timeout
        self._reach_timeout = reach_timeout
        self._transport = transport
        #: None before the first request: a list may have 100,000 exits that are never asked
        self._doubts: Deadlines | None = None
        #: why the server did not prove to know the key, and when, until it does
        self._unproven: tuple[float, str] | None = None
        self.pool = Pool(self._open_tunnel, label=self.label, settings=pool)

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        if request.fast_open:
            tunnel, fresh = self._take()
            return Connected(_EarlyStream(self, tunnel, request, fresh), UNSPECIFIED)
        tunnel, bound = self._ask(request)
        return Connected(self.stream_in(tunnel), bound)

    def begin(
        self, request: Request, done: Callable[[Connected | GsocksError | None], None]
    ) -> _TunnelAttempt | None:
        """See :meth:`gsocks.exits.base.Begins.begin`."""
        if request.fast_open:
            return None
        ready = self.pool.take_ready()
        if ready is None:
            return None
        attempt = _TunnelAttempt(self, *ready, done)
        attempt.ask(request)
        return attempt

    def identity(self, request: Request) -> Hashable:
        """See :meth:`gsocks.exits.forward.Identifies.identity`.

        Without a session the server may choose another exit of its own for each request.
        """
        selector = request.selector
        return None if selector.session is None else (request.user, selector)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        tunnel, bound = self._ask(request)
        return Connected(_AnsweredDatagrams(tunnel, _ReturnToPool(self.pool, tunnel)), bound)

    def bind(self, request: Request) -> PendingBind:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        tunnel, bound = self._ask(request)
        return _TunnelListener(self, tunnel, bound)

    def look_up(self, request: Request) -> Address:
        """See :meth:`gsocks.exits.base.LooksUp.look_up`; an older server can't."""
        tunnel, found = self._ask(request, ClientTunnel.look_up)
        self.pool.give_back(tunnel)
        return found

    def close(self) -> None:
        """Close the idle tunnels."""
        self.pool.close()

    def stream_in(self, tunnel: ClientTunnel, watcher: Any = None) -> TunnelStream:
        """The stream that was opened in a tunnel, which comes back to the pool after it.

        ``watcher``: as of :class:`gsocks.tunnel.streams.TunnelStream`.
        """
        return TunnelStream(tunnel, _ReturnToPool(self.pool, tunnel), watcher)

    @property
    def doubts(self) -> Deadlines:
        """The attempts of the hub that wait for their answer in a tunnel that was idle."""
        if self._doubts is None:
            self._doubts = Deadlines(self.acknowledged_within)
        return self._doubts

    def _ask(
        self,
        request: Request,
        ask: Callable[[ClientTunnel, Request], Address] = ClientTunnel.open,
    ) -> tuple[ClientTunnel, Address]:
        """Send a request to the server by ``ask``, and receive its answer.

        A tunnel that turns out to be dead is replaced by the next one, in the end by a fresh one:
        the request has no effect before OPENED is received.  One that the pool has opened meanwhile
        is as good as fresh: a server that ends each at its first request would be asked as fast as
        the pool is filled.  Nothing is sent again to a server that breaks the protocol.
        """
        begun, asked = time.monotonic(), request.asked
        while True:
            tunnel, fresh = self._take(asked)
            fresh = fresh or tunnel.last_heard >= begun
            asked += 1
            try:
                bound = ask(tunnel, request) if fresh else self._ask_waiting(tunnel, request, ask)
            except StreamError as error:
                tunnel.abort()
                if fresh or not isinstance(error, _UNANSWERED):
                    raise self.failed(error, asked, is_last=True) from None
            except (ConnectFailed, ClientError):
                self.pool.give_back(tunnel)
                raise
            except BaseException:  # timed out or killed: the answer is still due
                tunnel.abort()
                raise
            else:
                return tunnel, bound

    def failed(self, error: GsocksError, asked: int, *, is_last: bool = False) -> ExitFailed:
        """What a request that was sent in so many tunnels fails by, because of ``error``.

        ``is_last``: it is not to be sent to this server again.
        """
        failure = ExitFailed(f"{self.label}: {error}")
        failure.asked, failure.is_last = asked, is_last
        return failure

    def _take(self, asked: int = 0) -> tuple[ClientTunnel, bool]:
        """A tunnel for a request that was sent in so many, and whether it is a fresh one."""
        self._fail_at_once(asked)
        try:
            return (self.pool.take_new(), True) if asked + 1 >= MAX_TUNNELS else self.pool.take()
        except ExitFailed as error:
            error.asked = asked
            raise
        except (LimitReached, OutOfResources):  # of this machine
            raise
        except (StreamError, ConnectFailed) as error:
            raise self.failed(error, asked) from None

    def _fail_at_once(self, asked: int) -> None:
        """Raise ExitUnproven if the server is known not to prove that it knows the key.

        Each request would wait for as long as the first one.  The pool tries on meanwhile; without
        one, a request does after a while.
        """
        if self._unproven is None or self.pool.ready:
            return
        since, why = self._unproven
        if time.monotonic() - since < self.unproven_for:
            self.pool.wake()
            failure = ExitUnproven(f"{self.label}: {why}")
            failure.asked, failure.is_last = asked, True
            raise failure

    def verify(self) -> None:
        """Open one tunnel, which the pool keeps.  Raises GsocksError if the server can't be used.

        What it raises is what requests fail by at once, until the server can be used.
        """
        self.pool.give_back(self._open_tunnel())

    def _ask_waiting(
        self,
        tunnel: ClientTunnel,
        request: Request,
        ask: Callable[[ClientTunnel, Request], Address],
    ) -> Address:
        """Ask in a tunnel that was idle, whose path may be dead meanwhile."""
        doubt = self._begin_to_doubt(tunnel)
        try:
            return ask(tunnel, request)
        finally:
            doubt.stop()
            doubt.close()

    def _begin_to_doubt(self, tunnel: ClientTunnel) -> Any:
        """A timer, to be stopped and closed when the request that is sent now has its answer."""
        timer = gevent.get_hub().loop.timer(self.acknowledged_within)
        timer.start(self._doubt, tunnel, time.monotonic(), update=True)
        return timer

    def _doubt(self, tunnel: ClientTunnel, sent_at: float) -> None:
        """Runs in the hub when a request has had no answer for a while.

        The destination may be slow.  But if not even the server's kernel has acknowledged the
        request, then the tunnel's path is dead without notice (a middlebox dropped its state, the
        network changed), and so are probably the other tunnels that have received nothing since.
        """
        if not tunnel.closed and is_unanswered(tunnel.fileno(), sent_at):
            tunnel.abort()
            self.pool.distrust(sent_at)

    def _open_tunnel(self) -> ClientTunnel:
        tunnel = call_with_timeout(self._reach_timeout, self.agree, on_timeout=None)
        if tunnel is None:
            why = (
                f"no answer in {self._reach_timeout:g} s: another key, clocks more than 30 s apart,"
                " or no gsocks server at that address"
            )
            # a server that closes instead costs no wait, and may just be restarting
            self._unproven = time.monotonic(), why
            raise ExitUnproven(why)
        self._unproven = None
        return tunnel

    def agree(self, time_ms: int | None = None) -> ClientTunnel:
        """A new tunnel; ``time_ms``: the time that its hello tells, the machine's by default.

        Runs under the caller's timeout.  Raises ConnectFailed, StreamError.
        """
        sock = self._dialer.connect(self._server)
        try:
            if self._transport is None:
                return connect_tunnel(sock, self._key, self._ciphers, time_ms=time_ms)
            sock = layered = LayeredSocket(sock)
            self._transport.begin(layered)
            return connect_tunnel(layered, self._key, self._ciphers, LayeredClientTunnel, time_ms)
        except BaseException:
            sock.close()
            raise


class _TunnelAttempt:
    """A request in a tunnel that was ready, whose answer the hub waits for.

    Where TunnelExit.connect would ask again in another tunnel, that is left to it, and this attempt
    counts as the first one.
    """

    __slots__ = ("__weakref__", "_done", "_exit", "_sent_at", "_tunnel", "_watcher")

    _sent_at: float

    def __init__(
        self,
        exit_: TunnelExit,
        tunnel: ClientTunnel,
        watcher: Any,
        done: Callable[[Connected | GsocksError | None], None],
    ) -> None:
        self._exit = exit_
        self._tunnel = tunnel
        #: of the tunnel's descriptor, active; a timer once the tunnel has not taken the request
        self._watcher = watcher
        self._done = done

    def ask(self, request: Request) -> None:
        """Send the request.  If the tunnel does not take it, that is told like any other end."""
        tunnel, watcher = self._tunnel, self._watcher
        watcher.callback, watcher.args = self._on_readable, ()
        self._sent_at = sent_at = time.monotonic()
        try:
            rest = tunnel.ask_nowait(scratch_of_this_hub(), request)
        except StreamError:
            rest = None
        if rest is None or rest:
            self._give_up()
            self._watcher = later = gevent.get_hub().loop.timer(0)
            later.start(self._ended, None)
            return
        self._exit.doubts.add(self, sent_at)

    def cancel(self) -> None:
        """See :meth:`gsocks.exits.base.Attempt.cancel`."""
        self._exit.doubts.discard(self)
        self._give_up()

    def expired(self) -> None:
        """See :meth:`gsocks.net.deadlines.Expires.expired`, and :meth:`TunnelExit._doubt`."""
        if is_unanswered(self._tunnel.fileno(), self._sent_at):
            self._give_up()
            self._exit.pool.distrust(self._sent_at)
            self._done(None)

    def _on_readable(self) -> None:
        tunnel, scratch = self._tunnel, scratch_of_this_hub()
        try:
            bound = tunnel.answer_nowait(scratch)
            while bound is None and tunnel.has_backlog:  # of PADs, whose number is bounded
                bound = tunnel.answer_nowait(scratch)
        except (ConnectFailed, ClientError) as error:
            # a traceback would refer to this attempt, which refers to who gets the error
            self._refused(error.with_traceback(None))
        except StreamError as error:
            unanswered = isinstance(error, _UNANSWERED)
            self._ended(None if unanswered else self._exit.failed(error, 1, is_last=True))
        else:
            if bound is not None:
                exit_ = self._exit
                exit_.doubts.discard(self)
                self._watcher.stop()
                stream = exit_.stream_in(tunnel, self._watcher)
                self._done(new_tuple(Connected, (stream, bound)))

    def _refused(self, error: GsocksError) -> None:
        """End our direction, so that the tunnel can be used again."""
        tunnel = self._tunnel
        try:
            rest = tunnel.send_nowait(scratch_of_this_hub(), Frame.FIN)
        except StreamError:
            rest = None
        if rest is None or rest:
            self._ended(error)
            return
        exit_ = self._exit
        exit_.doubts.discard(self)
        self._watcher.close()
        tunnel.used()
        exit_.pool.give_back(tunnel)
        self._done(error)

    def _ended(self, made: GsocksError | None) -> None:
        self.cancel()
        self._done(made)

    def _give_up(self) -> None:
        self._watcher.close()
        self._tunnel.abort()


class _ReturnToPool:
    """Returns a tunnel to the pool when its stream has ended.

    Not a partial: there is one for each connection, and this is a quarter of its size.
    """

    __slots__ = ("_pool", "_tunnel")

    def __init__(self, pool: Pool, tunnel: ClientTunnel) -> None:
        self._pool = pool
        self._tunnel = tunnel

    def __call__(self, reusable: bool) -> None:
        if reusable:
            self._pool.give_back(self._tunnel, carried=True)


class _AnsweredDatagrams(TunnelDatagrams):
    """The datagrams of an association; what is none is dropped, as on any network."""

    __slots__ = ()

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        data = super().read_nowait(scratch)
        return with_source(bytes(data)) if data else data


class _TunnelListener:
    """A listening port of the server, which waits for one peer."""

    __slots__ = ("_exit", "_tunnel", "bound")

    def __init__(self, exit_: TunnelExit, tunnel: ClientTunnel, bound: Address) -> None:
        self._exit = exit_
        self._tunnel: ClientTunnel | None = tunnel
        self.bound = bound

    def accept(self) -> Connected:
        """See :meth:`gsocks.exits.base.PendingBind.accept`."""
        tunnel = self._tunnel
        if tunnel is None:
            raise StreamClosed("closed at this end")
        try:
            peer = tunnel.opened_again()
        except (ConnectFailed, ClientError):
            self._tunnel = None
            self._exit.pool.give_back(tunnel)
            raise
        except StreamClosed:
            raise
        except StreamError as error:
            raise ExitFailed(f"{self._exit.label}: {error}") from None
        self._tunnel = None
        return Connected(self._exit.stream_in(tunnel), peer)

    def close(self) -> None:
        """Close the port, and its tunnel with it, since an answer is still due."""
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.abort()


class _EarlyStream(TunnelStream):
    """A stream that can be used before the server has reported that it is open (``fast_open``).

    OPEN is sent together with the first data, in the same write.  Where the destination sends first
    (SSH, SMTP) there is no such data, and OPEN is sent alone after ``first_words_within``.  The
    server's answer is seen at the next read; after a refusal, or without an answer, reader and
    writer get Withdrawn.

    Once OPEN has been sent nothing is retried: data may have been sent with it, and after the end
    of a tunnel it is not known whether the destination has received them.
    """

    __slots__ = ("_begun", "_cause", "_due", "_exit", "_request", "_sent_at", "_suspect")

    def __init__(
        self, exit_: TunnelExit, tunnel: ClientTunnel, request: Request, fresh: bool
    ) -> None:
        super().__init__(tunnel, _ReturnToPool(exit_.pool, tunnel))
        self._exit = exit_
        self._request = request
        #: monotonic seconds; also of the first write of OPEN, once there was one
        self._begun = time.monotonic()
        self._sent_at: float | None = None
        #: whether the server's answer is still missing
        self._due = True
        #: whether the tunnel was idle in the pool, so that its path may be dead
        self._suspect = not fresh
        #: why there is no stream; None: no failure is known
        self._cause: GsocksError | None = None

    @property
    def has_prefetched(self) -> bool:
        return self._due or super().has_prefetched

    @property
    def read_wait(self) -> Wait:
        if not self._due or (self._tunnel is not None and self._tunnel.has_backlog):
            return super().read_wait
        if self._sent_at is None:
            due = self._begun + self._exit.first_words_within
        else:
            seconds = self._exit.acknowledged_within if self._suspect else self._exit._timeout
            due = self._sent_at + seconds
        events = READ | WRITE if self._unsent else READ
        return Wait(events, due - time.monotonic())

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        if self._due and not self._has_answer(scratch):
            return None
        return super().read_nowait(scratch)

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        if self._sent_at is None:
            return self._ask(scratch, Frame.DATA, data)
        return super().write_nowait(data, scratch)

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        if self._sent_at is None:
            all_sent = self._ask(scratch, Frame.FIN)
            self._write_ended = True
            return all_sent
        return super().write_eof_nowait(scratch)

    def abort(self) -> None:
        if self._sent_at is not None:
            super().abort()
            return
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            self._wake()
            self._ended(True)  # nothing was sent to the server

    def _ask(self, scratch: ScratchBuffers, kind: Frame | None = None, body: Bytes = b"") -> bool:
        """Send OPEN with the frame behind it; returns as write_nowait."""
        tunnel = self._open_tunnel()
        self._sent_at = time.monotonic()
        self._unsent = rest = tunnel.ask_nowait(scratch, self._request, kind, body)
        return not rest

    def _send(self, kind: Frame, body: Bytes, scratch: ScratchBuffers) -> bool:
        if not self._unsent:
            return super()._send(kind, body, scratch)
        # the rest of an OPEN that was sent alone: the frame is sent behind it
        end = self._open_tunnel().seal(scratch, kind, body)
        self._unsent = memoryview(b"".join((self._unsent, scratch.sealed[:end])))
        return self.flush_nowait(scratch)

    def _has_answer(self, scratch: ScratchBuffers) -> bool:
        """True if the stream is open.  Raises Withdrawn if it never will be, StreamClosed."""
        tunnel = self._open_tunnel()
        if self._sent_at is None:
            waited = time.monotonic() - self._begun
            if waited < self._exit.first_words_within and not tunnel.readable:
                return False
            self._ask(scratch)
        elif self._unsent:
            self.flush_nowait(scratch)
        try:
            self._due = tunnel.answer_nowait(scratch) is None
        except (ConnectFailed, ClientError) as error:
            self._refused(error, scratch)
        except StreamError as error:
            self._give_up(ExitFailed(f"{self._exit.label}: {error}"))
        else:
            if self._due:
                self._check_time(tunnel)
        self._open_tunnel()
        return not self._due

    def _check_time(self, tunnel: ClientTunnel) -> None:
        """Abort the tunnel if its path is dead, or the answer comes too late."""
        sent_at = self._begun if self._sent_at is None else self._sent_at
        waited = time.monotonic() - sent_at
        if waited >= self._exit._timeout:
            seconds = self._exit._timeout
            self._give_up(ConnectTimeout(f"the server has not answered in {seconds:g} s"))
        elif self._suspect and waited >= self._exit.acknowledged_within:
            self._suspect = False
            if is_unanswered(tunnel.fileno(), sent_at):
                self._exit.pool.distrust(sent_at)
                self._give_up(ExitFailed(f"{self._exit.label}: the tunnel's path is dead"))

    def _give_up(self, cause: GsocksError) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:  # else this end has ended it, which needs no cause
            self._cause = cause
            self._wake()
            tunnel.abort()
            self._ended(False)

    def _refused(self, cause: GsocksError, scratch: ScratchBuffers) -> None:
        """End our direction, as after any refusal, so that the tunnel can be used again."""
        tunnel = self._tunnel
        if tunnel is None or self._unsent:
            self._give_up(cause)  # FIN can't be sent in the middle of a frame
            return
        reusable = True
        if not self._write_ended:
            try:
                reusable = not tunnel.send_nowait(scratch, Frame.FIN)
            except StreamError:
                reusable = False
        if not reusable:
            self._give_up(cause)
            return
        self._tunnel, self._cause = None, cause
        tunnel.used()
        self._ended(True)

    def _open_tunnel(self) -> ClientTunnel:
        if self._cause is not None:
            raise Withdrawn.because(self._cause)
        return cast(ClientTunnel, super()._open_tunnel())
