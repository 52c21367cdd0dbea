"""The shape of the configuration file: frozen msgspec Structs, one for each mapping.

Settings that are used at run time too are those of gsocks/settings.py.  The comment of each field
(``#:``) is its description in docs/config.md and in the JSON schema.  How the text of each type is
parsed stands in gsocks/config/convert.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from gsocks.access.networks import Networks
from gsocks.access.username_style import UserNameStyle
from gsocks.address import Address
from gsocks.config.routes import Leg, Route
from gsocks.config.store import StoreUrl
from gsocks.exits.spec import DIRECT, ExitSpec
from gsocks.key_origin import KeyOrigin
from gsocks.net.endpoint import Endpoint
from gsocks.request import ANY, ExitSelector
from gsocks.rotation.sources import Source
from gsocks.settings import (
    CheckSettings,
    Count,
    DnsSettings,
    ForwardUdpSettings,
    HealthSettings,
    Limits,
    PacSettings,
    PerHostSettings,
    PoolSettings,
    RequestLogSettings,
    ReuseSettings,
    Seconds,
    SessionSettings,
    Switch,
    Timeouts,
    TlsSettings,
    TracingSettings,
    TransportSettings,
    UdpSettings,
)


class Secret(str):
    """Text that its repr hides."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Addresses(tuple[Endpoint, ...]):
    """Where a listener listens, at least one place; port 0 takes a free one."""

    __slots__ = ()


class UserNameStyles(tuple[UserNameStyle, ...]):
    """Styles of user names, at least one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A listening address, and the exit selector of all clients that connect to it."""

    address: Endpoint
    selector: ExitSelector = ANY
    #: None: those of the section
    username_style: UserNameStyles | None = None
    #: None: see :meth:`Local.asks`
    ask: bool | None = None
    #: None: that of the section
    prefer_login: bool | None = None
    #: None: as the section has it
    tls: bool | None = None


def endpoint_of(listen: Endpoint | ListenAddress) -> Endpoint:
    """Where that entry of a ``listen`` listens."""
    return listen.address if isinstance(listen, ListenAddress) else listen


class ListenAddresses(tuple[ListenAddress, ...]):
    """As :class:`Addresses`, each with a selector or without one."""

    __slots__ = ()


class SelectedAddresses(ListenAddresses):
    """The same, of a listener whose clients have no user names."""

    __slots__ = ()


class ServerAddresses(tuple[Address, ...]):
    """Name servers: host and port, at least one."""

    __slots__ = ()


class Routes(tuple[Route, ...]):
    """Routes, at least one; none of their ports twice."""

    __slots__ = ()


class Exits(tuple[ExitSpec, ...]):
    """Exits, none of them and no name twice."""

    __slots__ = ()


class ExitSources(tuple[Source, ...]):
    """Lists of exits in files, which exist, and at URLs; none of them twice."""

    __slots__ = ()


class RuleLines(tuple[str, ...]):
    """Rules that :meth:`gsocks.access.rules.Rules.parse` takes, at least one."""

    __slots__ = ()


class Statuses(tuple[int, ...]):
    """HTTP statuses of failures, 400 to 599."""

    __slots__ = ()


class Pseudonym(str):
    """A name of a proxy in Via: a host, or a word of RFC 9110 section 5.6.2."""

    __slots__ = ()


class FilePath(str):
    """A file that need not exist yet."""

    __slots__ = ()


class UserHashes(dict[str, Secret]):
    """User names and their Argon2id hashes."""


class Passphrase(Secret):
    """A password or a key of Shadowsocks."""

    __slots__ = ()


class Passphrases(dict[str, Secret]):
    """User names, and the password of each."""


class KeySources(dict[str, "KeySource"]):
    """Key names and where each key comes from, at least one."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a shared key comes from: a file that holds it, its text, or an origin elsewhere.

    All but one of them are None.
    """

    file: Path | None = None
    key: str | None = field(default=None, repr=False)
    origin: KeyOrigin | None = None


# the descriptions stand in error messages: 'x' is not ...
_Level = Annotated[
    Literal["debug", "info", "warning", "error"],
    Meta(description="a level (known: debug, info, warning, error)"),
]
_Format = Annotated[Literal["text", "json"], Meta(description="a format (known: text, json)")]
_Workers = Annotated[
    Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"],
    Meta(description="auto or a whole number from 1 to 1024"),
]
_Tries = Annotated[int, Meta(ge=1, le=10, description="a whole number from 1 to 10")]
ShadowsocksMethod = Annotated[
    Literal[
        "2022-blake3-aes-256-gcm",
        "2022-blake3-aes-128-gcm",
        "2022-blake3-chacha20-poly1305",
        "chacha20-ietf-poly1305",
        "aes-256-gcm",
        "aes-128-gcm",
    ],
    Meta(
        description="a method (known: 2022-blake3-aes-256-gcm, 2022-blake3-aes-128-gcm,"
        " 2022-blake3-chacha20-poly1305, chacha20-ietf-poly1305, aes-256-gcm, aes-128-gcm)"
    ),
]
_Rotate = Annotated[
    Literal["round_robin", "random", "weighted", "least_connections", "fastest", "least_recent"],
    Meta(
        description="a policy (known: round_robin, random, weighted, least_connections, fastest,"
        " least_recent)"
    ),
]


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log on standard error."""

    #: The lowest level that is logged.
    level: _Level = "info"
    #: `json`: one object a line.
    format: _Format = "text"
    #: Whether each connection is logged in one line when it ends.
    access: Switch = True


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that `local` and `server` have in common."""

    #: Networks and addresses of clients; the connections of all others are closed at once, as
    #: `client_forbidden`. Left out: all clients are accepted.
    clients: Networks | None = None
    #: Networks of balancers. A connection from these has to begin with a PROXY header (v1 or v2);
    #: its source is then the client for `clients`, limits, logins and log. Left out: none.
    proxy_protocol_from: Networks | None = None
    #: Exits, tried in turn when one fails by itself: URLs, or mappings as below. `{session}`,
    #: `{country}`, `{lifetime}` and `{user}` in the user or password of a proxy are filled in: see
    #: [scraping.md](scraping.md).
    exits: Exits = Exits((DIRECT,))
    #: Lists of exits in files and at URLs, see "Lists of exits". With it and without `exits`,
    #: `direct` is not an exit.
    exit_sources: ExitSources = ExitSources()
    #: The policy by which an exit is chosen.
    rotate: _Rotate = "round_robin"
    #: Exits that a request may try in turn, while no payload byte has been relayed.
    tries: _Tries = 3
    #: After so long without a connection a second exit is tried beside the first one, and the one
    #: that connects first serves the request. Not for sessions, which have one exit, nor with
    #: `fast_open`. Left out: another exit is tried only when the first one has failed.
    hedge: Seconds | None = None
    #: Which destinations are allowed, see "Rules". Left out: private addresses are denied.
    rules: RuleLines | None = None
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    pool: PoolSettings = PoolSettings()
    health: HealthSettings = HealthSettings()
    checks: CheckSettings = CheckSettings()
    per_host: PerHostSettings = PerHostSettings()


class Local(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local end: SOCKS5, SOCKS4 and HTTP clients connect to it."""

    #: IP address and port, or a list of them; `localhost` is 127.0.0.1; port 0 takes a free one.
    #: IPv6 in brackets. `unix:PATH` is a Unix socket, `systemd:NAME` a socket that is passed on:
    #: see "Unix sockets" and "Socket activation". Each may be a mapping with `address` and a
    #: selector of exits for all its clients, as below.
    listen: ListenAddresses
    #: Name and Argon2id hash (`gsocks passwd`). Without users a listener opens on loopback only,
    #: unless `allow_anonymous` is true.
    users: UserHashes = msgspec.field(default_factory=UserHashes)
    #: A file of more users, `name:hash` a line, `#` for comments; read again when it changes. No
    #: name may stand in both.
    users_file: Path | None = None
    #: How clients write parameters into their credentials: the name of a style, one of its own as a
    #: mapping (below), or a list of them; see [providers.md](providers.md). Left out: `standard`,
    #: which is `USER-session-ID-country-CC`.
    username_style: UserNameStyles | None = None
    #: Whether other machines may connect without a user name and password.
    allow_anonymous: Switch = False
    #: CONNECT through a `gsocks://` exit is answered before the destination is reached, see
    #: "fast_open".
    fast_open: Switch = False
    #: Statuses by which an exit is counted as failing for the host, and another one is tried: of
    #: answers to plain HTTP requests (`http://`) that are idempotent and have no body, and of an
    #: HTTP exit's own answer to CONNECT. Not if the request belongs to a session. The last answer
    #: is passed on, whatever it is. Left out: none.
    retry_on: Statuses = Statuses()
    #: This proxy's name in the Via field of plain HTTP requests and responses (RFC 9110 section
    #: 7.6.3), such as `gsocks`. Left out: there is no Via, and servers are not told of the proxy.
    via: Pseudonym | None = None
    #: Whether HTTP clients without credentials are asked for some (407), as `ask` of an address,
    #: which counts over this. Left out: where a session is expected, see there.
    ask: Switch | None = None
    #: Whether SOCKS5 clients that offer a login besides none are asked for it, as `prefer_login` of
    #: an address, which counts over this. Left out: where a name can matter, see there.
    prefer_login: Switch | None = None
    udp: UdpSettings = UdpSettings()
    sessions: SessionSettings = SessionSettings()
    reuse: ReuseSettings = ReuseSettings()
    pac: PacSettings = PacSettings()
    #: TLS in front of all addresses of `listen` but those with `tls: false`, see "TLS". Left out:
    #: clients come without TLS.
    tls: TlsSettings | None = None

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens."""
        return tuple(each.address for each in self.listen)

    def asks(self, listener: ListenAddress) -> bool:
        """Whether HTTP clients without credentials are asked for some.

        Left out, where a session is expected of them: for an exit that is given it with each
        request, or because sessions are strict.
        """
        told = self.ask if listener.ask is None else listener.ask
        if told is not None:
            return told
        expected = self.sessions.strict or any(spec.expects_session for spec in self.exits)
        return expected and listener.selector.session is None and not self.sessions.by_client

    def tls_of(self, listener: ListenAddress) -> TlsSettings | None:
        """Its TLS; None: its clients come without."""
        return None if listener.tls is False else self.tls

    def is_guarded(self, listener: ListenAddress) -> bool:
        """Whether its clients have to show who they are."""
        tls = self.tls_of(listener)
        certified = tls is not None and tls.client_ca is not None and tls.client_cert == "required"
        return certified or bool(self.users) or self.users_file is not None

    def prefers_login(self, listener: ListenAddress) -> bool | None:
        """Whether SOCKS5 clients that offer a login besides none are asked for it; None: the exits
        decide."""
        told = listener.prefer_login
        return self.prefer_login if told is None else told


class Shadowsocks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener for Shadowsocks clients, see [shadowsocks.md](shadowsocks.md)."""

    #: IP address and port, or a list of them, as at `local`.
    listen: Addresses
    #: The method of all its clients.
    method: ShadowsocksMethod
    #: The password; of a method of 2022 a key in base64 (`openssl rand -base64 32`, aes-128: 16).
    #: With `users` only for a method of 2022, whose clients then have `PASSWORD:USERSPASSWORD`.
    password: Passphrase | None = None
    #: A file that has the password in its only line, instead of `password`.
    password_file: Path | None = None
    #: Names of users and the password of each; the names are the users in the access log and in
    #: `rules`. Left out: one user, `shadowsocks`. For 64 users at most with a method of 2017.
    users: Passphrases = msgspec.field(default_factory=Passphrases)
    #: Whether datagrams are served as well, at the same ports.
    udp: Switch = True
    #: Associations of datagrams at a time through one listening address, in each worker. One more
    #: ends the one that has been silent for longest, of the client that has most of them.
    associations: Count = 1000
    #: Without a datagram in either direction for so long, an association ends.
    udp_idle: Seconds = 60.0


class Server(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server: tunnels of local ends connect to it."""

    #: IP address and port, or a list of them, as at `local`. Required, as `keys` are, unless there
    #: is `shadowsocks`.
    listen: Addresses = Addresses()
    #: Name and `{file: PATH}`, or the base64 text; or `{env: NAME}`, an environment variable that
    #: has it, or `{command: [pass, show, gsocks]}`, a command that prints it. The name is the user
    #: in the access log and in `rules`. A missing file is made at start.
    keys: KeySources = msgspec.field(default_factory=KeySources)
    #: Left out: no Shadowsocks clients are served.
    shadowsocks: Shadowsocks | None = None
    transport: TransportSettings = TransportSettings()

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens, by TCP."""
        more = () if self.shadowsocks is None else self.shadowsocks.listen
        return (*self.listen, *more)


class SharingSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of what has no users, and the exits of `local` if it has none of its own."""

    #: As at `local`. Left out: those of `local`, with all that belongs to them, or `direct` if
    #: there is no `local`.
    exits: Exits = Exits()
    #: Whether it may listen where other machines can reach it: it has no users.
    allow_remote: Switch = False

    @property
    def has_own_exits(self) -> bool:
        """Whether its exits are not those of `local`."""
        return bool(self.exits or self.exit_sources)

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens."""
        raise NotImplementedError


class Forwards(SharingSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static forwards: what connects to a port, or sends a datagram there, has one destination."""

    #: What is forwarded where: mappings as below.
    routes: Routes
    #: As at `local`, for exits of its own. Left out: the destinations of the routes are allowed,
    #: whatever they are.
    rules: RuleLines | None = None
    udp: ForwardUdpSettings = ForwardUdpSettings()

    @property
    def legs(self) -> Iterator[Leg]:
        """Each port of each route."""
        return chain.from_iterable(route.legs() for route in self.routes)

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens."""
        return tuple(leg.listen for leg in self.legs)


class Redirect(SharingSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transparent proxy: connections that the kernel redirects to it, see
    [redirect.md](redirect.md)."""

    #: IP address and port, or a list of them, as at `local`; no Unix socket. Each may be a mapping
    #: with `address` and a selector of exits, as below.
    listen: SelectedAddresses

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens."""
        return tuple(each.address for each in self.listen)


class DnsListener(SharingSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener for DNS, whose questions go through an exit over TCP, see [dns.md](dns.md)."""

    #: IP address and port, or a list of them, as at `local`, for UDP and TCP. Each may be a mapping
    #: with `address` and a selector of exits, as below.
    listen: SelectedAddresses
    #: The name server that is asked, `1.1.1.1` or `1.1.1.1:53`, or a list of them, of which the
    #: next one is asked where one fails. A name is looked up where the exit goes out.
    server: ServerAddresses
    #: As at `local`, for exits of its own. Left out: the servers are allowed, whatever they are.
    rules: RuleLines | None = None
    #: Answers that are kept for their TTL, in each worker.
    cache_size: Count = 4096
    #: For an answer, however many servers are asked; then the client is told that there is none.
    timeout: Seconds = 5.0
    #: Questions that wait for answers at a time, in each worker. When there are more, the client
    #: that has most of them loses its oldest one.
    waiting: Count = 1000
    #: Those of one client (IPv6: a /64); more are refused.
    waiting_per_client: Count = 100

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where it listens."""
        return tuple(each.address for each in self.listen)


#: each section that may share the exits of ``local``
Sharing: TypeAlias = Forwards | Redirect | DnsListener


@dataclass(frozen=True, slots=True)
class AdminToken:
    """A token of the admin; it has a file or a hash."""

    name: str
    role: str
    file: Path | None = None
    #: in hex
    sha256: str | None = field(default=None, repr=False)


class AdminTokens(tuple[AdminToken, ...]):
    """Tokens, no name twice."""

    __slots__ = ()


class HostNames(tuple[str, ...]):
    """Names of hosts, in lower case."""

    __slots__ = ()


class Admin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The admin: dashboard, JSON and metrics, see [admin.md](admin.md)."""

    #: IP address and port, or a list of them, as at `local`.
    listen: Addresses = Addresses((Address("127.0.0.1", 9090),))
    #: The bearer token of requests, in one line; made at the first start. Left out: `admin.token`
    #: beside the config.
    token_file: FilePath | None = None
    #: More tokens, each with a `name` and a `role`, as mappings (below); that of `token_file` is
    #: called `admin` and is an operator's.
    tokens: AdminTokens = AdminTokens()
    #: Names by which browsers reach the dashboard, as behind a TLS proxy, besides addresses and
    #: `localhost`.
    hosts: HostNames = HostNames()
    #: Whether it may listen where other machines can reach it: it is not encrypted.
    allow_remote: Switch = False
    #: Whether the histograms of `/metrics` have exemplars, which name a request's id, where the
    #: client asks for OpenMetrics.
    exemplars: Switch = False


_Prefix = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="a prefix (1 to 64 letters, digits and any of _.-)",
    ),
]
_Fail = Annotated[
    Literal["open", "closed"], Meta(description="how quotas fail (known: open, closed)")
]


class HealthServer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether it is alive and takes requests, for balancers: see [fleet.md](fleet.md)."""

    #: IP address and port, or a list of them, as at `local`. It answers `/healthz` and `/readyz`,
    #: to all that reach it, and nothing else.
    listen: Addresses
    #: At SIGTERM: for so long `/readyz` says 503 while requests are still taken, so that balancers
    #: notice it before the listeners close. Left out: they close at once.
    drain_notice: Seconds | None = None


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a restart must not forget, and what gateways share: a `file`, a `url`, or both. See
    [operations.md](operations.md) and [fleet.md](fleet.md)."""

    #: An SQLite file on a local disk, made with mode 0600 at the first start. It keeps sessions,
    #: the health and the bans of exits, and what their budgets have left, for the next start.
    #: Beside it are the counters of 30 days (`FILE-history`, with `admin`) and the request log
    #: (`FILE-requests`, with `requests`).
    file: FilePath | None = None
    #: The Valkey or Redis that all gateways share: `redis://HOST:PORT/0`, `rediss://` with TLS,
    #: `unix:///PATH`, `redis+sentinel://HOST:PORT,.../SERVICE`, `redis+cluster://HOST:PORT,...`;
    #: a user of an ACL stands before an `@`. Left out: each gateway is alone.
    url: StoreUrl | None = None
    #: `url`: a file with the password, read at each connect.
    password_file: Path | None = None
    #: `rediss://`: a file of the certificates that are trusted, in PEM. Left out: the system's.
    ca: Path | None = None
    #: `rediss://`: a file with the certificate that is shown to the store, in PEM. It is read at
    #: each connect, as `ca` and `key` are.
    cert: Path | None = None
    #: `cert`: the file with its key. Left out: the key is in the file of `cert`.
    key: Path | None = None
    #: `url`: what the names of all keys and of the channel begin with. Gateways share what has the
    #: same prefix.
    prefix: _Prefix = "gsocks"
    #: `url`: a key file that all gateways have (`gsocks keygen`). By it they share what holds
    #: secrets, sealed: lists of exits, and what the admin API changes. Left out: neither is shared.
    shared_key_file: Path | None = None
    #: `url`: what this gateway is called where gateways are listed. Left out: the host's name.
    gateway: _Prefix | None = None
    #: `url`: whether quotas, limits and budgets let more requests pass (`open`) or none (`closed`)
    #: that this gateway can't agree on with the others, since the store does not answer.
    fail: _Fail = "open"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A configuration file; it has `local`, `server` or another section that listens."""

    #: Processes that share the ports: a number, or `auto`, which is one for each core.
    workers: _Workers = 1
    log: Log = Log()
    local: Local | None = None
    server: Server | None = None
    #: Static forwards of ports, see "Forwards". A list alone stands for `routes`.
    forwards: Forwards | None = None
    #: Connections that the kernel redirects, see [redirect.md](redirect.md).
    redirect: Redirect | None = None
    #: Answers questions of the DNS through exits, see [dns.md](dns.md).
    dns_listener: DnsListener | None = None
    dns: DnsSettings = DnsSettings()
    #: Left out: there is no admin API.
    admin: Admin | None = None
    #: Left out: only the admin answers `/healthz` and `/readyz`.
    health: HealthServer | None = None
    #: Left out: a restart begins anew, and nothing is shared.
    state: State | None = None
    #: Left out: requests are not logged one by one. Needs `state`.
    requests: RequestLogSettings | None = None
    #: Left out: there are no traces.
    tracing: TracingSettings | None = None
