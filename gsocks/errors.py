"""Everything that can go wrong, as one tree.

Each error knows three faces: the reply a SOCKS client gets (RFC 1928 section 6), the status an
HTTP client gets, and the word that stands in the access log; and whose fault it is, as far as an
exit's failure tells.  Nothing else in gsocks tells errors apart by their text.

A message must never carry a key or a password: it ends in logs and on screens.
"""

from __future__ import annotations

import errno
from enum import Enum, IntEnum


class Reply(IntEnum):
    """REP of RFC 1928 section 6.

    Inside the tunnel the same byte carries a finer cause in its high nibble (docs/protocol.md);
    its low nibble is always the RFC's reply, so that an end that doesn't know the cause still
    answers its client well.
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
    """Whose fault it is that an exit did not connect a request.

    It decides whether another exit is asked, and whether the health of this one suffers.
    """

    #: The destination's, the rules' or the client's: it would be the same by any exit.  Nobody
    #: else is asked.
    REQUEST = "request"
    #: Certainly the exit's own: another one is asked, and this one's health suffers.
    EXIT = "exit"
    #: The exit's or the destination's, and from one exit nobody can tell: a proxy that is silent
    #: may wait for a blackholed destination.  Another exit is asked.  If that one connects, it
    #: was the first one's fault, and its health suffers; if none does, nobody's.
    UNCLEAR = "unclear"
    #: A healthy exit can't serve this now, or not such a request: another one is asked, and this
    #: one's health is not touched.
    NOBODY = "nobody"


class GsocksError(Exception):
    """Something that gsocks tells its user in one line; never a fault of gsocks itself."""

    #: the outcome in the access log
    word = "error"
    #: what a SOCKS5 client is answered
    reply = Reply.GENERAL_FAILURE
    #: what an HTTP client is answered
    http_status = 502
    #: what the far end of a tunnel is answered; the low nibble is ``reply``
    code = 0x01
    #: whose it is if an exit raises it for a request
    fault = Fault.REQUEST

    def __str__(self) -> str:
        return super().__str__() or self.word.replace("_", " ")


class ConfigError(GsocksError):
    """A setting that can't be used: where it stands, what it is, what was expected."""

    word = "bad_config"


class FetchFailed(GsocksError):
    """A page of the web that could not be had."""

    word = "fetch_failed"


# --- what a client does before its request is known -----------------------------------------


class ClientError(GsocksError):
    """The client's fault; it is answered in its own protocol where that has an answer."""

    word = "bad_request"
    http_status = 400


class BadRequest(ClientError):
    """Bytes that the protocol doesn't allow."""


class HeadTooLarge(BadRequest):
    """The head of an HTTP request is longer than anybody needs."""

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
    """A destination that can't be one: an empty name, a control byte, a port out of range."""

    word = "bad_address"


class AddressTypeNotSupported(ClientError):
    """An ATYP that RFC 1928 section 5 doesn't define."""

    word = "bad_address_type"
    reply = Reply.ADDRESS_TYPE_NOT_SUPPORTED
    code = 0x18


class CommandNotSupported(ClientError):
    """A CMD that this door doesn't serve."""

    word = "bad_command"
    reply = Reply.COMMAND_NOT_SUPPORTED
    http_status = 501
    code = 0x07
    fault = Fault.NOBODY


class AuthenticationFailed(ClientError):
    """No acceptable method, or credentials that don't fit."""

    word = "auth_failed"
    http_status = 407


class BadParameters(AuthenticationFailed):
    """What stands behind a user's name and is to choose an exit can't be understood."""

    word = "bad_parameters"


class LoginRefused(ClientError):
    """Too many logins have failed from where this one comes; it was not looked at."""

    word = "auth_refused"
    http_status = 429


class LoginsBusy(ClientError):
    """More logins wait to be verified than this machine can do in time."""

    word = "auth_busy"
    http_status = 503


class ClientForbidden(ClientError):
    """The client's address is in none of the networks that may come in."""

    word = "client_forbidden"
    http_status = 403


class BadProxyHeader(ClientError):
    """A balancer's connection without the PROXY header that it has to begin with."""

    word = "bad_proxy_header"


class HandshakeTimeout(ClientError):
    """The client took longer than ``timeouts.handshake`` to say what it wants."""

    word = "handshake_timeout"
    http_status = 408


class ClientGone(ClientError):
    """The client hung up before its request was whole."""

    word = "client_gone"


class Stranger(ClientError):
    """Whoever connected didn't prove that it knows a key; it must not learn even that."""

    word = "stranger"


# --- why a request was not connected --------------------------------------------------------


class ConnectFailed(GsocksError):
    """The request was understood, and no way to its destination was found."""

    word = "connect_failed"


class Forbidden(ConnectFailed):
    """The rules deny this destination."""

    word = "forbidden"
    reply = Reply.FORBIDDEN
    http_status = 403
    code = 0x02


class NetworkUnreachable(ConnectFailed):
    """No route: the destination has none, or the exit's own uplink is down."""

    word = "network_unreachable"
    reply = Reply.NETWORK_UNREACHABLE
    code = 0x03
    fault = Fault.UNCLEAR


class HostUnreachable(ConnectFailed):
    """The host doesn't answer; most proxies say so of a name that doesn't resolve, too."""

    word = "host_unreachable"
    reply = Reply.HOST_UNREACHABLE
    code = 0x04


class NameNotFound(ConnectFailed):
    """The destination's name doesn't resolve."""

    word = "name_not_found"
    reply = Reply.HOST_UNREACHABLE
    code = 0x14


class ConnectionRefused(ConnectFailed):
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
    """This machine can't speak to addresses of that family."""

    word = "address_family"
    reply = Reply.ADDRESS_TYPE_NOT_SUPPORTED
    code = 0x08
    fault = Fault.NOBODY


class OutOfResources(ConnectFailed):
    """No descriptor or no memory is left for another connection."""

    word = "out_of_resources"
    http_status = 503
    code = 0x11
    fault = Fault.NOBODY  # in most cases it is this machine that has none


class LimitReached(ConnectFailed):
    """A limit of the configuration is used up."""

    word = "limit"
    http_status = 503
    code = 0x21
    fault = Fault.NOBODY


class ExitFailed(ConnectFailed):
    """The way out itself failed, before it could try the destination."""

    word = "exit_failed"
    code = 0x31
    fault = Fault.EXIT


class ExitDoubtful(ExitFailed):
    """The way out failed, or the destination did; what was said, or that nothing was, fits both."""

    word = "exit_doubtful"
    code = 0x51
    fault = Fault.UNCLEAR


class NoExit(ConnectFailed):
    """No exit may be asked: none is what the client wishes for, or all are banned."""

    word = "no_exit"
    http_status = 503
    code = 0x61
    fault = Fault.NOBODY


class ShuttingDown(ConnectFailed):
    """This end is about to stop."""

    word = "shutting_down"
    http_status = 503
    code = 0x41
    fault = Fault.EXIT


# --- how an open stream can end, other than well --------------------------------------------


class StreamError(GsocksError):
    """A stream ended without its proper end; the other side of the relay is reset."""

    word = "stream_error"


class StreamReset(StreamError):
    """The far end gave the connection up (RST, or RESET in a tunnel)."""

    word = "reset"


class PeerVanished(StreamError):
    """The far end's machine doesn't answer any more (TCP keepalive or retransmission ran out)."""

    word = "vanished"


class StreamClosed(StreamError):
    """This end closed the stream while somebody still used it."""

    word = "closed"


class Truncated(StreamError):
    """The transport ended where the protocol had not."""

    word = "truncated"


class Tampered(StreamError):
    """A frame that was not sealed by the other end of this tunnel."""

    word = "tampered"


class ProtocolViolation(StreamError):
    """An authentic frame in a place where none of its type may stand."""

    word = "protocol_violation"


class Withdrawn(StreamError):
    """The client was told of a success that did not come, which ``fast_open`` allows."""

    word = "withdrawn"
    #: why it did not come
    cause: GsocksError | None = None

    @classmethod
    def because(cls, cause: GsocksError) -> Withdrawn:
        """One that goes by the word of its cause."""
        withdrawn = cls(str(cause))
        withdrawn.cause, withdrawn.word = cause, cause.word
        return withdrawn


class BadResponse(StreamError):
    """What an origin server answered is not HTTP/1.1."""

    word = "bad_response"


class IdleTimeout(StreamError):
    """Nothing flowed in either direction for ``timeouts.idle``."""

    word = "idle_timeout"
    http_status = 504


class HalfClosedTimeout(StreamError):
    """One direction had ended and the other was idle for ``timeouts.half_closed``."""

    word = "half_closed_timeout"
    http_status = 504


# --- translation, once ----------------------------------------------------------------------

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
    errno.EPERM: Forbidden,
    errno.EACCES: Forbidden,
    errno.EMFILE: OutOfResources,
    errno.ENFILE: OutOfResources,
    errno.ENOBUFS: OutOfResources,
    errno.ENOMEM: OutOfResources,
}


def connect_failure(error: OSError) -> ConnectFailed:
    """The operating system's reason for a failed connect, as one of ours."""
    kind = _CONNECT_ERRNO.get(error.errno or 0, ConnectFailed)
    return kind(error.strerror or type(error).__name__)


def stream_failure(error: OSError) -> StreamError:
    """The operating system's reason for a broken stream, as one of ours."""
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
        NoExit,
        ShuttingDown,
    )
}


def failure_from_code(code: int, message: str = "") -> GsocksError:
    """The failure that the far end of a tunnel reported; a cause unknown here keeps its reply."""
    kind = _FAILURES_BY_CODE.get(code) or _FAILURES_BY_CODE.get(code & 0x0F, ConnectFailed)
    return kind(message)
