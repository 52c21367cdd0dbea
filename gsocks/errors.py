"""All errors of gsocks, as one tree of exceptions.

Each class holds how it is reported: the reply of SOCKS5 (RFC 1928 section 6), the status of HTTP,
the code inside a tunnel (docs/protocol.md) and the outcome in the access log; and, for an exit's
failure, its :class:`Fault`.  No code of gsocks distinguishes errors by their text.

A message must never contain a key or a password: it is written to logs and sent to clients.
"""

from __future__ import annotations

import errno
from enum import Enum, IntEnum
from typing import TypeVar

_Error = TypeVar("_Error", bound="GsocksError")


class Reply(IntEnum):
    """REP of RFC 1928 section 6.

    Inside a tunnel the high nibble of the same byte holds a more precise cause (docs/protocol.md).
    The low nibble is always the RFC's reply, so that an end that doesn't know the cause still has
    the right reply for its client.
    """

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    FORBIDDEN = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class Fault(Enum):
    """To what the failure of an exit to connect a request is attributed.

    It decides whether failover tries another exit, and what the failure says of this one
    (docs/exits.md).
    """

    #: The rules of this end or the client: any exit would fail alike, so no other is tried.
    REQUEST = "request"
    #: The destination, as the exit says in precise words.  But an exit whose account has run out,
    #: or whose own network is gone, says so of every destination: one other exit is tried, unless
    #: the word of this one is believed (rotation/evidence.py).
    DESTINATION = "destination"
    #: The exit, certainly: another one is tried, and the failure counts in this one's health.
    EXIT = "exit"
    #: The exit or the destination, and the failure of one exit can't tell which: a proxy that is
    #: silent may be waiting for a blackholed destination.  Other exits are tried.  If bytes come
    #: back from the destination through another one, the failure counts against the first.
    UNCLEAR = "unclear"
    #: None: a healthy exit can't serve this now, or not this kind of request.  Another one is
    #: tried, and this one's health is unchanged.
    NONE = "none"


class GsocksError(Exception):
    """An error that gsocks reports in one line; never a bug of gsocks itself."""

    #: the outcome in the access log
    word = "error"
    #: the reply to a SOCKS5 client
    reply = Reply.GENERAL_FAILURE
    #: the status of the response to an HTTP client
    http_status = 502
    #: the code in OPENED inside a tunnel; the low nibble is ``reply``
    code = 0x01
    #: to what it is attributed if an exit raises it for a request
    fault = Fault.REQUEST
    #: the HTTP status of the answer, if it is an exit's own answer
    status: int | None = None
    #: seconds after which the same request may be served; None: that is not known
    retry_after: float | None = None
    #: in how many tunnels the exit has asked its server for the request, all in vain
    asked = 0
    #: what the log knows the exit by at which it came about, of a request that several may have
    #: tried
    at_exit = ""
    #: whether the exit must not be asked for the same request again
    is_last = False
    #: whether it is so usual that its access line is one of debug level
    is_routine = False

    def __str__(self) -> str:
        return super().__str__() or self.word.replace("_", " ")

    def of(self: _Error, label: str) -> _Error:
        """The same error, whose message begins with the exit's label."""
        error = type(self)(f"{label}: {self}")
        error.status, error.retry_after = self.status, self.retry_after
        return error


class ConfigError(GsocksError):
    """An invalid setting; the message says where it is, what it is and what was expected."""

    word = "bad_config"


class FetchFailed(GsocksError):
    """A web page could not be fetched."""

    word = "fetch_failed"


class StateFailed(GsocksError):
    """The state file can't be read or written."""

    word = "state_failed"


class StateLost(StateFailed):
    """The state file was deleted or replaced while it was in use: what it had is not kept."""

    word = "state_lost"


class StoreFailed(GsocksError):
    """The store that gateways share does not answer, or refuses."""

    word = "store_failed"


class HistoryFailed(GsocksError):
    """The history or the request log can't be read or written."""

    word = "history_failed"


# --- errors of a client, before its request is known ----------------------------------------


class ClientError(GsocksError):
    """The client's fault; reported to it in its own protocol, where that has a reply for it."""

    word = "bad_request"
    http_status = 400


class BadRequest(ClientError):
    """Bytes that violate the client's protocol."""


class Http2NotServed(BadRequest):
    """A connection that begins as HTTP/2, which is told so in HTTP/2."""


class HeadTooLarge(BadRequest):
    """The head of an HTTP request exceeds :data:`gsocks.http.head.MAX_HEAD`."""

    word = "head_too_large"
    http_status = 431


class BodyTooLarge(BadRequest):
    """The body of an HTTP request is larger than ``limits.request_body``."""

    word = "body_too_large"
    http_status = 413


class TransferCodingNotSupported(BadRequest):
    """A transfer coding other than chunked (RFC 9112 section 6.1)."""

    word = "bad_transfer_coding"
    http_status = 501


class BadAddress(BadRequest):
    """An invalid destination: an empty name, a control byte, a port out of range."""

    word = "bad_address"


class BadPort(BadAddress):
    """An address whose port is out of range."""


class AddressTypeNotSupported(ClientError):
    """An ATYP that RFC 1928 section 5 doesn't define."""

    word = "bad_address_type"
    reply = Reply.ADDRESS_TYPE_NOT_SUPPORTED
    code = 0x18


class CommandNotSupported(ClientError):
    """A CMD that this listener doesn't serve."""

    word = "bad_command"
    reply = Reply.COMMAND_NOT_SUPPORTED
    http_status = 501
    code = 0x07
    fault = Fault.NONE


class AuthenticationFailed(ClientError):
    """No acceptable authentication method, or wrong credentials."""

    word = "auth_failed"
    http_status = 407


class BadParameters(AuthenticationFailed):
    """Invalid parameters of the exit selector behind a user name."""

    word = "bad_parameters"


class LoginRefused(ClientError):
    """Too many logins from the client's address have failed; this one was not verified."""

    word = "auth_refused"
    http_status = 429


class LoginsBusy(ClientError):
    """More logins are waiting for verification than this machine can verify in time."""

    word = "auth_busy"
    http_status = 503
    retry_after = 1.0


class ClientForbidden(ClientError):
    """The client's address is in none of the networks of ``clients``."""

    word = "client_forbidden"
    http_status = 403


class BadProxyHeader(ClientError):
    """A connection from ``proxy_protocol_from`` without a valid PROXY header at its beginning."""

    word = "bad_proxy_header"


class HandshakeTimeout(ClientError):
    """The client took longer than ``timeouts.handshake`` to send its request."""

    word = "handshake_timeout"
    http_status = 408


class NotRedirected(ClientError):
    """A connection to the listener of redirected ones that the kernel has not redirected."""

    word = "not_redirected"


class Evicted(ClientError):
    """The listener was full, and this connection had said least for longest."""

    word = "evicted"
    http_status = 503


class ClientGone(ClientError):
    """The client closed the connection before its request was complete."""

    word = "client_gone"


class ConnectedOnly(ClientGone):
    """The client closed the connection without a byte, as a balancer's health check does."""

    is_routine = True


class Stranger(ClientError):
    """A peer that has not proved that it knows a key; it must not learn even that."""

    word = "stranger"


# --- why a request was not connected --------------------------------------------------------


class ConnectFailed(GsocksError):
    """The request was valid, but no connection to its destination could be made."""

    word = "connect_failed"
    fault = Fault.DESTINATION


class Forbidden(ConnectFailed):
    """An exit's rules deny this destination, or it serves no client any more."""

    word = "forbidden"
    reply = Reply.FORBIDDEN
    http_status = 403
    code = 0x02


class Denied(Forbidden):
    """The rules of this end deny this destination, by whatever exit."""

    fault = Fault.REQUEST


class NetworkUnreachable(ConnectFailed):
    """No route: the destination has none, or the exit's own uplink is down."""

    word = "network_unreachable"
    reply = Reply.NETWORK_UNREACHABLE
    code = 0x03
    fault = Fault.UNCLEAR


class HostUnreachable(ConnectFailed):
    """The host doesn't answer; most proxies also report a name so that doesn't resolve."""

    word = "host_unreachable"
    reply = Reply.HOST_UNREACHABLE
    code = 0x04


class NameNotFound(ConnectFailed):
    """The destination's name doesn't resolve."""

    word = "name_not_found"
    reply = Reply.HOST_UNREACHABLE
    code = 0x14


class ConnectionRefused(ConnectFailed):
    """The destination refuses the connection: nothing listens on that port."""

    word = "refused"
    reply = Reply.CONNECTION_REFUSED
    code = 0x05


class ConnectTimeout(ConnectFailed):
    """No answer within ``timeouts.connect``."""

    word = "connect_timeout"
    reply = Reply.TTL_EXPIRED
    http_status = 504
    code = 0x06
    fault = Fault.UNCLEAR


class AddressFamilyNotSupported(ConnectFailed):
    """This machine has no connectivity for addresses of that family."""

    word = "address_family"
    reply = Reply.ADDRESS_TYPE_NOT_SUPPORTED
    code = 0x08
    fault = Fault.NONE


class OutOfResources(ConnectFailed):
    """No descriptor, no port or no memory is left for another connection."""

    word = "out_of_resources"
    http_status = 503
    code = 0x11
    retry_after = 1.0
    fault = Fault.NONE  # in most cases it is this machine that has none left


class LimitReached(ConnectFailed):
    """A configured limit is reached."""

    word = "limit"
    http_status = 503
    code = 0x21
    retry_after = 1.0  # when another connection ends is not known
    fault = Fault.NONE


class ExitFailed(ConnectFailed):
    """The exit itself failed, before it could try the destination."""

    word = "exit_failed"
    code = 0x31
    fault = Fault.EXIT


class ExitUnproven(ExitFailed):
    """The server has not shown that it knows the key: another key, another time, another server."""

    word = "exit_unproven"


class ExitDoubtful(ExitFailed):
    """The exit or the destination failed; the answer, or the silence, is consistent with both."""

    word = "exit_doubtful"
    code = 0x51
    fault = Fault.UNCLEAR


class ExitHungUp(ExitDoubtful):
    """The exit has ended the connection instead of an answer, as many do if a destination fails."""


class NoExit(ConnectFailed):
    """No exit may be tried: none matches the client's exit selector, or all are banned."""

    word = "no_exit"
    http_status = 503
    code = 0x61
    fault = Fault.NONE


class LoopDetected(ExitFailed):
    """The exit leads back to the listener that the request came in by."""

    word = "loop"
    http_status = 508
    code = 0x71


class ShuttingDown(ConnectFailed):
    """This end is about to stop."""

    word = "shutting_down"
    http_status = 503
    code = 0x41
    fault = Fault.EXIT


# --- how a connected stream fails -----------------------------------------------------------


class StreamError(GsocksError):
    """A stream ended without a clean EOF; the other side of the relay is reset."""

    word = "stream_error"


class StreamReset(StreamError):
    """The peer reset the connection (RST, or RESET in a tunnel)."""

    word = "reset"


class PeerVanished(StreamError):
    """The peer's machine no longer answers (TCP keepalive or retransmission timed out)."""

    word = "vanished"


class StreamClosed(StreamError):
    """This end closed the stream while another greenlet was using it."""

    word = "closed"


class Truncated(StreamError):
    """The transport ended before the protocol's end of the stream."""

    word = "truncated"


class TlsFailed(StreamError):
    """TLS to a proxy or a server failed: no trust in a certificate, an alert, or no TLS at all."""

    word = "tls_failed"


class WebSocketFailed(StreamError):
    """A tunnel's WebSocket failed: no upgrade was granted, or a frame that RFC 6455 forbids."""

    word = "websocket_failed"


class Tampered(StreamError):
    """A frame that was not sealed by the other end of this tunnel."""

    word = "tampered"


class ProtocolViolation(StreamError):
    """An authentic frame of a type that the tunnel's state doesn't allow."""

    word = "protocol_violation"


class FrameTimeout(StreamError):
    """Between two streams a frame has not come whole in time, or was not taken."""

    word = "frame_timeout"


class Withdrawn(StreamError):
    """The connection failed after success was reported, which ``fast_open`` allows."""

    word = "withdrawn"
    #: why the connection failed
    cause: GsocksError | None = None

    @classmethod
    def because(cls, cause: GsocksError) -> Withdrawn:
        """An error with the message and the ``word`` of ``cause``."""
        withdrawn = cls(str(cause))
        withdrawn.cause, withdrawn.word = cause, cause.word
        return withdrawn


class BadResponse(StreamError):
    """The origin server's response is not valid HTTP/1.1."""

    word = "bad_response"


class IdleTimeout(StreamError):
    """No byte in either direction for ``timeouts.idle``."""

    word = "idle_timeout"
    http_status = 504


class HalfClosedTimeout(StreamError):
    """One direction had ended, and the other carried no byte for ``timeouts.half_closed``."""

    word = "half_closed_timeout"
    http_status = 504


# --- errors of the operating system, and codes of the tunnel --------------------------------

_CONNECT_ERRNO: dict[int, type[ConnectFailed]] = {
    errno.ECONNREFUSED: ConnectionRefused,
    errno.ECONNRESET: ConnectionRefused,
    errno.ENETUNREACH: NetworkUnreachable,
    errno.ENETDOWN: NetworkUnreachable,
    errno.EHOSTUNREACH: HostUnreachable,
    errno.EHOSTDOWN: HostUnreachable,
    errno.ETIMEDOUT: ConnectTimeout,
    errno.EAFNOSUPPORT: AddressFamilyNotSupported,
    errno.EADDRNOTAVAIL: NetworkUnreachable,
    errno.EADDRINUSE: OutOfResources,
    errno.EPERM: Forbidden,
    errno.EACCES: Forbidden,
    errno.EMFILE: OutOfResources,
    errno.ENFILE: OutOfResources,
    errno.ENOBUFS: OutOfResources,
    errno.ENOMEM: OutOfResources,
}


def connect_failure(error: OSError) -> ConnectFailed:
    """The :class:`ConnectFailed` for an operating system's error of connect()."""
    kind = _CONNECT_ERRNO.get(error.errno or 0, ConnectFailed)
    return kind(error.strerror or type(error).__name__)


class LayerFailed(OSError):
    """A StreamError of what lies between a socket and its user, as a call of sockets raises it."""

    def __init__(self, failure: StreamError) -> None:
        super().__init__(str(failure))
        self.failure = failure


def stream_failure(error: OSError) -> StreamError:
    """The :class:`StreamError` for an operating system's error of a connected socket."""
    if isinstance(error, LayerFailed):
        return error.failure
    if error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ECONNABORTED):
        return StreamReset("connection reset by peer")
    if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return PeerVanished(error.strerror or "")
    if error.errno == errno.EBADF:
        return StreamClosed("closed at this end")
    return StreamError(error.strerror or type(error).__name__)


_FAILURES_BY_CODE: dict[int, type[GsocksError]] = {
    kind.code: kind
    for kind in (
        ConnectFailed,
        Forbidden,
        NetworkUnreachable,
        HostUnreachable,
        NameNotFound,
        ConnectionRefused,
        ConnectTimeout,
        CommandNotSupported,
        AddressTypeNotSupported,
        AddressFamilyNotSupported,
        OutOfResources,
        LimitReached,
        ExitFailed,
        ExitDoubtful,
        LoopDetected,
        NoExit,
        ShuttingDown,
    )
}


def failure_from_code(code: int, by: str = "") -> GsocksError:
    """The error for the code of an OPENED; of an unknown code the low nibble counts.

    ``by``: who reports it; stands in the message behind what it is, since a client is told no more.
    """
    kind = _FAILURES_BY_CODE.get(code) or _FAILURES_BY_CODE.get(code & 0x0F, ConnectFailed)
    return kind(f"{kind.word.replace('_', ' ')}, {by}" if by else "")
