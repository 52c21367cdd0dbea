"""The options of a listener: the same for a config file and for a Python program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from msgspec import Struct

from gsocks.access.networks import Networks, SomeNetworks
from gsocks.access.username_style import STANDARD, SomeStyle
from gsocks.address import Address
from gsocks.crypto import Cipher
from gsocks.errors import ConfigError
from gsocks.inbound.quota import UserQuota
from gsocks.messages import unknown_keyword
from gsocks.net.listen import is_local
from gsocks.observe import Observer
from gsocks.replay import ReplayGuard
from gsocks.request import ANY, ExitSelector
from gsocks.rotation.build import SomeRules, SomeUsers
from gsocks.rotation.given_settings import given, listed
from gsocks.settings import (
    ForwardUdpSettings,
    Limits,
    PacSettings,
    Timeouts,
    TlsSettings,
    TransportSettings,
    UdpSettings,
)


@dataclass(frozen=True, kw_only=True)
class ListenerOptions:
    """What both servers take."""

    #: which destinations may be reached; None denies private addresses and allows the rest.
    #: Without meaning where the exits are an ExitGroup, which has rules of its own.
    rules: SomeRules = None
    #: seconds; these and other settings may be given as a mapping, too: ``{"connect": "5s"}``
    timeouts: Timeouts = Timeouts()
    #: counts and bytes a second
    limits: Limits = Limits()
    #: the networks that may come in; None means all
    clients: SomeNetworks = None
    #: the networks of balancers, whose connections begin with a PROXY header
    proxy_protocol_from: SomeNetworks = None
    #: what each user uses, counted over all listeners that share it; None: this listener alone
    quota: UserQuota | None = None
    #: gets each connection's record at its end
    observer: Observer | None = None


@dataclass(frozen=True, kw_only=True)
class LocalOptions(ListenerOptions):
    """What :class:`gsocks.local.LocalServer` takes."""

    #: names and Argon2id hashes, a Users object, or a Throttle that listeners share; None lets
    #: every client in without a password
    users: SomeUsers = None
    #: whether clients may come in without a password where other machines can reach the listener
    allow_anonymous: bool = False
    #: UDP associations
    udp: UdpSettings = UdpSettings()
    #: a CONNECT through a gsocks server is answered with success at once, so that the client's
    #: first bytes travel with its request; a failure afterwards is a reset
    fast_open: bool = False
    #: statuses of HTTP answers after which the request is sent through another exit, if one is left
    retry_on: Collection[int] = ()
    #: this proxy's name in Via of plain HTTP messages (RFC 9110 section 7.6.3); None: no Via
    via: str | None = None
    #: TLS in front of all protocols; a mapping, too: ``{"cert": "server.pem"}``
    tls: TlsSettings | Mapping[str, Any] | None = None
    #: the script by which browsers find this proxy
    pac: PacSettings = PacSettings()
    #: the exit selector of every client; a client's own parameters in its user name count over it
    selector: ExitSelector = ANY
    #: how clients write these parameters: the name of a style, a mapping or a list, as in a config
    username_style: SomeStyle | Sequence[SomeStyle] = STANDARD
    #: where no session is asked for, the client's address is one
    by_client: bool = False
    #: whether HTTP clients without credentials are asked for some, even without ``users``: many
    #: send their user name, and so their session, only then
    ask: bool = False
    #: whether SOCKS5 clients that offer a login besides none are asked for it, even without
    #: ``users``, since their user name may carry a session; None: with ``ask``, and where names can
    #: matter: with several exits, or one with a country, tags or a place for a session
    prefer_login: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ListenerOptions):
    """What :class:`gsocks.server.RemoteServer` takes."""

    #: the hellos seen, shared by all processes that serve the same address; None: this one alone
    guard: ReplayGuard | None = None
    #: what the server offers in the key agreement
    ciphers: Cipher = Cipher.SECRETBOX
    #: what tunnels travel in
    transport: TransportSettings = TransportSettings()


@dataclass(frozen=True, kw_only=True)
class ForwardOptions(ListenerOptions):
    """What forwards take: :class:`gsocks.forward.ForwardServer` and
    :class:`gsocks.inbound.udp_forward.UdpForward`.
    """

    #: whether other machines may be able to reach it
    allow_remote: bool = False
    #: the exit selector of every client
    selector: ExitSelector = ANY
    #: of a forward of datagrams
    udp: ForwardUdpSettings = ForwardUdpSettings()

    def check_reach(self, address: Address | None, to: Address) -> None:
        """Raise ConfigError if other machines could use a forward that is not meant for them."""
        if address is not None and not self.allow_remote and not is_local(address):
            raise ConfigError(
                f"{address} would let all machines that can reach it through to {to}"
                " (allow_remote=True if that is intended)"
            )


@dataclass(frozen=True, kw_only=True)
class RedirectOptions(ListenerOptions):
    """What :class:`gsocks.redirect.RedirectServer` takes."""

    #: whether other machines may be able to reach it
    allow_remote: bool = False
    #: the exit selector of every client
    selector: ExitSelector = ANY

    def check_reach(self, address: Address | None) -> None:
        """Raise ConfigError if other machines could use a listener that is not meant for them."""
        if address is not None and not self.allow_remote and not is_local(address):
            raise ConfigError(
                f"{address} would carry what all machines that can reach it have redirected there"
                " (allow_remote=True if that is intended)"
            )


@dataclass(frozen=True, kw_only=True)
class DnsOptions(ListenerOptions):
    """What :class:`gsocks.dns_listener.server.DnsServer` takes."""

    #: whether other machines may be able to reach it
    allow_remote: bool = False
    #: the exit selector of the connections to name servers
    selector: ExitSelector = ANY
    #: answers that are kept
    cache_size: int = 4096
    #: seconds for an answer
    timeout: float = 5.0
    #: questions that wait for answers at a time, of all clients and of one
    waiting: int = 1000
    waiting_per_client: int = 100

    def check_reach(self, address: Address | None) -> None:
        """Raise ConfigError if other machines could use a listener that is not meant for them."""
        if address is not None and not self.allow_remote and not is_local(address):
            raise ConfigError(
                f"{address} would answer all machines that can reach it"
                " (allow_remote=True if that is intended)"
            )


_Options = TypeVar("_Options", bound=ListenerOptions)


def collect(
    owner: str, kind: type[_Options], options: _Options | None, keywords: dict[str, Any]
) -> _Options:
    """``options`` of ``kind`` (its defaults if None), over which the ``keywords`` count.

    Raises TypeError, which names ``owner``, for a keyword that is no option, for options of another
    kind and for values of another type.
    """
    if options is not None and not isinstance(options, kind):
        raise TypeError(f"{owner} takes {kind.__name__}, not {type(options).__name__}")
    known = [field.name for field in fields(kind)]
    for keyword in keywords:
        if keyword not in known:
            raise unknown_keyword(owner, keyword, known)
    base = kind() if options is None else options
    made = replace(base, **keywords) if keywords else base
    settings: dict[str, Any] = {
        field.name: given(owner, field.name, getattr(made, field.name), type(field.default))
        for field in fields(kind)
        if isinstance(field.default, Struct)
    }
    for name, what in (("clients", "networks"), ("proxy_protocol_from", "networks")):
        _check_listed(owner, name, getattr(made, name), what)
    if isinstance(made, LocalOptions):
        _check_listed(owner, "retry_on", made.retry_on, "statuses")
    is_same = all(getattr(made, name) is value for name, value in settings.items())
    return made if is_same else replace(made, **settings)


def _check_listed(owner: str, name: str, value: object, what: str) -> None:
    if value is None or isinstance(value, Networks):
        return
    try:
        listed(value, what)
    except ConfigError as error:
        raise ConfigError(f"{owner}: {name}: {error}") from None
