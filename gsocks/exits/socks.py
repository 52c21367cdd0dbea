"""The ways out through SOCKS5 (RFC 1928, 1929) and SOCKS4a proxies.

Names go to the proxy as they are: it resolves them, and nothing shows in the DNS here.

Nothing is sent ahead of the answer that it depends on.  It would save round trips, but proxies
that take one recv for one message are common (microsocks#105), and hang when two come at once.
"""

from __future__ import annotations

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    AddressFamilyNotSupported,
    AddressTypeNotSupported,
    BadAddress,
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    ExitDoubtful,
    ExitFailed,
    Forbidden,
    HostUnreachable,
    NetworkUnreachable,
)
from gsocks.exits.base import Connected
from gsocks.exits.credentials import Filled
from gsocks.exits.opening import Opening
from gsocks.exits.proxy import ProxyExit
from gsocks.request import Command
from gsocks.stream import Stream

_HTTP = ord("H")  # how an HTTP server's answer to anything begins


# --- SOCKS5 ---------------------------------------------------------------------------------

_VERSION = 0x05  # VER of RFC 1928 section 3
_NO_AUTHENTICATION = 0x00  # METHODs, the same section
_USERNAME_PASSWORD = 0x02
_LOGIN_VERSION = 0x01  # VER of RFC 1929 section 2

# REP of RFC 1928 section 6.  Here are those that tell of the destination: it would be the same
# through another proxy, or is said of it by the proxy's own rules, which did their work.  Command
# not supported (07) tells of the proxy.  General failure (01) and whatever the RFC doesn't know
# tell nothing for sure: there are proxies that have no other word for a refused connection.
_COMMAND_NOT_SUPPORTED = 0x07
_FAILURES: dict[int, tuple[type[ConnectFailed], str]] = {
    0x02: (Forbidden, "forbidden by the proxy's rules"),
    0x03: (NetworkUnreachable, "network unreachable"),
    0x04: (HostUnreachable, "host unreachable"),
    0x05: (ConnectionRefused, "connection refused"),
    0x06: (ConnectTimeout, "no answer in time"),
    0x08: (AddressFamilyNotSupported, "the proxy doesn't support its address family"),
}


class Socks5Exit(ProxyExit):
    """A SOCKS5 proxy.

    With ``credentials`` no other method is offered than user name and password: a proxy that would
    rather have none would ignore what providers put into user names (sessions, countries).
    """

    __slots__ = ()

    def _greet(self, stream: Stream, login: Filled | None) -> Stream:
        opening = Opening(stream)
        if login is None:
            _greet(stream, opening, _NO_AUTHENTICATION)
        else:
            _greet(stream, opening, _USERNAME_PASSWORD)
            _log_in(stream, opening, login)
        return opening.rest()

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:  # noqa: ARG002
        opening = Opening(stream)
        stream.write(bytes((_VERSION, Command.CONNECT, 0x00)) + dest.encode())
        version, reply = opening.exactly(2, "its reply")
        _expect(version, _VERSION)
        if reply:  # what follows tells nothing more, and is not always there
            raise _failure(reply, dest)
        opening.exactly(1, "its reply")  # RSV
        bound = _read_bound(opening)
        return Connected(opening.rest(), bound)


def _greet(stream: Stream, opening: Opening, method: int) -> None:
    """Agree on a method, RFC 1928 section 3."""
    stream.write(bytes((_VERSION, 1, method)))
    version, chosen = opening.exactly(2, "its answer to the greeting")
    _expect(version, _VERSION)
    if chosen != method:
        wants = "wants a" if method == _NO_AUTHENTICATION else "takes no"
        raise ExitFailed(f"the proxy {wants} user name and password (it chose {chosen:#04x})")


def _log_in(stream: Stream, opening: Opening, login: Filled) -> None:
    """User name and password, RFC 1929 section 2."""
    name, secret = login.user.encode(), login.password.encode()
    stream.write(
        bytes((_LOGIN_VERSION, len(name))) + name + bytes((len(secret),)) + secret  # lengths < 256
    )
    # the version is not looked at: there are proxies that answer 5
    _, status = opening.exactly(2, "its answer to the login")
    if status:
        raise ExitFailed("the proxy refuses this user name and password")


def _failure(reply: int, dest: Address) -> ConnectFailed:
    if reply in _FAILURES:
        kind, words = _FAILURES[reply]
        return kind(f"{dest}: {words}")
    kind = ExitFailed if reply == _COMMAND_NOT_SUPPORTED else ExitDoubtful
    return kind(f"{dest}: the proxy failed (reply {reply:#04x})")


def _read_bound(opening: Opening) -> Address:
    """The bound address; unspecified where the proxy tells none that could be one."""
    try:
        bound = Address.read(lambda count: opening.exactly(count, "its reply"))
    except BadAddress:  # an empty name, in most cases
        return UNSPECIFIED
    except AddressTypeNotSupported as error:  # nobody knows where such a reply ends
        raise ExitFailed(f"the proxy's reply has {error}") from None
    return bound if bound.ip is not None else UNSPECIFIED


def _expect(version: int, expected: int) -> None:
    if version != expected:
        hint = ": probably an HTTP proxy" if version == _HTTP else ""
        raise ExitFailed(f"the answer begins with {version:#04x}, which is not SOCKS{hint}")


# --- SOCKS4a --------------------------------------------------------------------------------

_VERSION_4 = 0x04
_REPLY_VERSION_4 = 0x00
_GRANTED = 0x5A
_REJECTED_OR_FAILED = 0x5B
_NAME_FOLLOWS = bytes((0, 0, 0, 1))  # 0.0.0.x with x not 0


class Socks4aExit(ProxyExit):
    """A SOCKS4a proxy: it takes IPv4 addresses and names, and a user name without a password."""

    __slots__ = ()

    def _ask(self, stream: Stream, dest: Address, login: Filled | None) -> Connected:
        stream.write(_socks4a_request(dest, "" if login is None else login.user))
        opening = Opening(stream)
        version, reply = opening.exactly(2, "its reply")
        _expect(version, _REPLY_VERSION_4)
        if reply != _GRANTED:
            # SOCKS4 has one word for all causes that lie behind the proxy
            kind = ExitDoubtful if reply == _REJECTED_OR_FAILED else ExitFailed
            raise kind(f"{dest}: the proxy rejected it or failed (reply {reply:#04x})")
        bound = opening.exactly(6, "its reply")
        return Connected(
            opening.rest(),
            Address(".".join(map(str, bound[2:])), int.from_bytes(bound[:2], "big")),
        )


def _socks4a_request(dest: Address, user: str) -> bytes:
    ip = dest.ip
    if ip is not None and ip.version == 6:
        raise AddressFamilyNotSupported(f"{dest}: SOCKS4a has no IPv6 addresses, only names")
    name = b"" if ip is not None else dest.host.encode("ascii") + b"\0"
    return (
        bytes((_VERSION_4, Command.CONNECT))
        + dest.port.to_bytes(2, "big")
        + (_NAME_FOLLOWS if ip is None else ip.packed)
        + user.encode()
        + b"\0"
        + name
    )
