"""Settings of a listener and of its exits: one definition for the config file and for programs.

    LocalServer(("127.0.0.1", 1080), timeouts=Timeouts(connect=5), limits=Limits(per_user=20))

Each class is an immutable msgspec Struct with keyword arguments, and
``msgspec.structs.replace(timeouts, idle=60)`` makes a changed copy.  Durations are seconds, sizes
are bytes, rates are bytes a second.  A program gives plain numbers, which are not checked.  In a
config file the same fields are text (``idle: 10m``): gsocks/config/convert.py parses each type
below, and the comment of each field (``#:``) is its description in docs/config.md and in the JSON
schema for editors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from gsocks.dns.name_server import NameServer
from gsocks.http.url import WebUrl

# To a type checker these are plain numbers and text, so that Timeouts(connect=5) is right; at run
# time they are classes of their own, by which msgspec finds the parser of a field's text.
if TYPE_CHECKING:
    Seconds: TypeAlias = float
    Size: TypeAlias = int
    Rate: TypeAlias = float
    Share: TypeAlias = float
    IPLiteral: TypeAlias = str
    Ports: TypeAlias = tuple[int, int]
    CheckUrls: TypeAlias = tuple[WebUrl, ...]
    RegularExpression: TypeAlias = str
    FieldPath: TypeAlias = str
    NameServers: TypeAlias = tuple[NameServer | str, ...]
    Domains: TypeAlias = tuple[str, ...]
    Protocols: TypeAlias = tuple[str, ...]
    UrlPath: TypeAlias = str
    DirectHosts: TypeAlias = tuple[str, ...]
else:

    class Seconds(float):
        """A duration longer than zero."""

        __slots__ = ()

    class Size(int):
        """Bytes."""

        __slots__ = ()

    class Rate(float):
        """Bytes a second, 1024 or more."""

        __slots__ = ()

    class Share(float):
        """A fraction from 0 to 1, written as a percentage."""

        __slots__ = ()

    class IPLiteral(str):
        """An IP address in its canonical form."""

        __slots__ = ()

    class Ports(tuple[int, int]):
        """The first and the last port of a range."""

        __slots__ = ()

    class CheckUrls(tuple[WebUrl, ...]):
        """URLs of pages, none of them twice."""

        __slots__ = ()

    class RegularExpression(str):
        """A regular expression of Python."""

        __slots__ = ()

    class FieldPath(str):
        """A name, or several with dots between them."""

        __slots__ = ()

    class NameServers(tuple[NameServer, ...]):
        """Name servers, at least one and none of them twice."""

        __slots__ = ()

    class Domains(tuple[str, ...]):
        """Names of domains."""

        __slots__ = ()

    class Protocols(tuple[str, ...]):
        """Protocols that ALPN offers."""

        __slots__ = ()

    class UrlPath(str):
        """The path of a URL, with a query or without."""

        __slots__ = ()

    class DirectHosts(tuple[str, ...]):
        """Hosts that browsers reach without a proxy."""

        __slots__ = ()


# the descriptions stand in error messages: 'x' is not ...
Count = Annotated[int, Meta(ge=1, description="a whole number from 1")]
CountOrZero = Annotated[int, Meta(ge=0, description="a whole number from 0")]
Status = Annotated[int, Meta(ge=100, le=599, description="a status from 100 to 599")]
Part = Annotated[
    float, Meta(gt=0, le=1, description="a number above 0 and not above 1, such as 0.1")
]
Redaction = Annotated[
    Literal["none", "hosts"], Meta(description="a kind of redaction (known: none, hosts)")
]
CollectorUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^/@\s?#]+(/[^\s@?#]*)?$",
        description="a URL of a collector (http, https)",
    ),
]
ServiceName = Annotated[
    str, Meta(min_length=1, max_length=100, description="a name of 1 to 100 characters")
]
Switch = Annotated[bool, Meta(description="true or false")]
Transport = Annotated[
    Literal["tcp", "tls", "ws", "wss"],
    Meta(description="a transport (known: tcp, tls, ws, wss)"),
]

CertificateUse = Annotated[
    Literal["required", "optional"],
    Meta(description="a use of certificates (known: required, optional)"),
]


class Timeouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Durations in seconds."""

    #: For a client to send its request, or to prove that it knows a key.
    handshake: Seconds = 10.0
    #: For a request to be connected, however many addresses and exits are tried for it.
    connect: Seconds = 10.0
    #: For an exit itself to be reached: its own TCP connection, and then its TLS handshake or its
    #: SOCKS5 greeting and login; for a gsocks server, a new tunnel. An exit that takes longer, or
    #: refuses, has failed by its own fault, whatever the destination. No more than `connect`.
    exit: Seconds = 3.0
    #: For an HTTP client whose request was answered to begin its next one. A client that was
    #: challenged for a password has `timeouts.handshake`.
    keep_alive: Seconds = 60.0
    #: Without a byte in either direction; also for a tunnel between two requests, without a ping.
    #: Noticed up to 5 s later (of less than 40 s: an eighth).
    idle: Seconds = 600.0
    #: The same once one direction has been closed.
    half_closed: Seconds = 60.0
    #: For the peer of a BIND to connect, at either end.
    bind: Seconds = 60.0
    #: For open connections to finish after SIGTERM.
    drain: Seconds = 30.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts, bytes, and bytes a second; None is no limit."""

    #: Connections (at a server: tunnels) through one listening address, in each worker.
    connections: Count = 10_000
    #: The same from one IPv4 address or IPv6 /64; at a server only until the tunnel's peer has
    #: proved its key.
    per_client: Count = 256
    #: At a server: tunnels of one key at a time through one listening address, in each worker. Left
    #: out: half of `connections`, and all of them where there is one key only.
    per_key: Count | None = None
    #: Connections through one listening address whose request is not complete yet, in each worker.
    #: One more evicts the one that has said least for longest, of the client that has most of them;
    #: a client that was served before comes last, with up to a hundredth of them.
    handshakes: Count = 1000
    #: Connections of one user at a time (at a server: streams of one key), in each worker, or over
    #: all that share a `state.url`.
    per_user: Count | None = None
    #: Bytes of the body of one HTTP request in absolute form; a larger one is answered 413. CONNECT
    #: has no bound.
    request_body: Size | None = None
    #: Bytes a second of one connection in each direction, at least 1KiB/s.
    bandwidth_per_connection: Rate | None = None
    #: The same for all connections of one user (at a server: of one key) together, in each worker,
    #: or over all that share a `state.url`.
    bandwidth_per_user: Rate | None = None


class UdpSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """UDP associations of a local listener."""

    #: Behind NAT: the IP address that replies name to clients. Clients that connect over loopback
    #: or over the other IP version get the address that they have connected to, as all clients do
    #: if this is left out.
    advertise: IPLiteral | None = None
    #: The range of ports of associations, for instance those that a NAT forwards. Left out: any
    #: port.
    ports: Ports | None = None
    #: Associations at a time through one listening address, in each worker; 0: UDP is off.
    associations: CountOrZero = 1000
    #: The same of one IPv4 address or IPv6 /64.
    per_client: Count = 64
    #: Without a datagram in either direction for so long, an association ends.
    idle: Seconds = 60.0


class ForwardUdpSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """UDP associations of a forward."""

    #: Associations at a time through one listening address, in each worker: one for each address
    #: and port that sends datagrams. One more ends the one that has been silent for longest, of the
    #: client that has most of them.
    associations: Count = 1000
    #: Without a datagram in either direction for so long, an association ends.
    idle: Seconds = 60.0


class PoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tunnels opened ahead of need, for each exit that is a tunnel and in use."""

    #: Tunnels kept ready for each `gsocks://` exit, from its first request on; grows to eight times
    #: that under load; 0: each request opens its own.
    size: CountOrZero = 8
    #: After so long an unused tunnel is replaced, or if no request has come for so long, closed.
    #: Keep it below the server's `timeouts.idle`.
    max_idle: Seconds = 300.0
    #: After so long a tunnel carries no further request, and is closed once it is idle, so that its
    #: keys are forgotten; an open stream is never cut. Each tunnel draws its own bound, between
    #: three quarters of this and all of it.
    max_age: Seconds = 3600.0
    #: The same after so many bytes, in both directions together; 0: each tunnel carries one
    #: request.
    max_volume: Size = 64 * 1024**3


class TransportSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tunnels of a server travel."""

    #: `tcp`: as they are, which looks like random bytes; `tls`: in TLS, with `cert`; `wss`: in a
    #: WebSocket in TLS; `ws`: in a WebSocket, behind a web server that has the TLS.
    kind: Transport = "tcp"
    #: `tls`, `wss`: a file with the server's certificate and those between it and an authority, in
    #: PEM; read again at a reload.
    cert: Path | None = None
    #: `tls`, `wss`: the file with its key. Left out: the key is in the file of `cert`.
    key: Path | None = None
    #: `tls`, `wss`: the protocols that are accepted by ALPN, in order of preference; `[]` for none.
    alpn: Protocols = ("http/1.1",)
    #: `ws`, `wss`: the path of the WebSocket; all other requests are answered with status 404.
    path: UrlPath = "/"


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS in front of a local listener."""

    #: A file with the listener's certificate and those between it and an authority, in PEM. All of
    #: these files are read again when they change.
    cert: Path
    #: The file with its key. Left out: the key is in the file of `cert`.
    key: Path | None = None
    #: A file of the authorities whose certificates clients may show, in PEM. Such a client is the
    #: user of the certificate's common name, or if it has none, of its first e-mail address, name
    #: or URI, and needs no password; where there are `users`, only if it is one of them.
    client_ca: Path | None = None
    #: `client_ca`: whether a client has to show a certificate (`required`), or may log in without
    #: one (`optional`).
    client_cert: CertificateUse = "required"


class ReuseSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Connections to exits that are kept for further plain HTTP requests (`http://`)."""

    #: Idle connections that are kept for each exit; 0: each request opens its own. So it should be
    #: for a proxy that changes its address with each connection.
    per_exit: CountOrZero = 8
    #: The same for all exits of the listeners together, in each worker.
    total: CountOrZero = 512
    #: After so long an unused connection is closed.
    max_idle: Seconds = 30.0


class PacSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The automatic configuration of browsers (PAC), which the HTTP port serves without a login at
    `/proxy.pac` and `/wpad.dat`."""

    #: Whether it is served.
    serve: Switch = True
    #: Hosts that browsers reach without the proxy, besides loopback: names (`intranet.example`,
    #: `*.corp.example`), addresses, networks, and `<local>` for every name without a dot. All that
    #: can reach the port can read them.
    direct: DirectHosts = ()


class RequestLogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request log: one row for each request, beside the state file, see
    [history.md](history.md)."""

    #: For how long a row is kept.
    keep: Seconds = 7 * 86400.0
    #: Bytes of the file; the oldest rows are deleted before there are more.
    max_size: Size = 2 * 1024**3
    #: The part of the requests that is logged, drawn at random.
    sample: Part = 1.0
    #: `hosts`: destinations as pseudonyms, the same for the same host until the next restart, and
    #: no text of an error.
    redact: Redaction = "none"


class TracingSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of requests for OpenTelemetry (`pip install 'gsocks[otel]'`), see
    [history.md](history.md)."""

    #: Where a collector takes traces by OTLP over HTTP.
    endpoint: CollectorUrl = "http://127.0.0.1:4318/v1/traces"
    #: The part of the requests that is traced, drawn at random.
    sample: Part = 1.0
    #: Their `service.name`.
    service: ServiceName = "gsocks"


class HealthSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of passive health: what failed requests do to an exit."""

    #: Own failures of an exit in a row, or destinations in a row that others reach, that eject it;
    #: see [exits.md](exits.md).
    failures: Count = 3
    #: Longest ejection the first time; the bound doubles each next time.
    base: Seconds = 30.0
    #: Longest ejection ever.
    longest: Seconds = 3600.0
    #: Requests in flight at a time through an exit that has not shown that it works.
    unproven: Count = 4
    #: The share of the exits that have worked that failed requests may eject.
    max_ejected: Share = 0.5


class PerHostSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of each exit for each host that is requested through it, in each worker, or over all
    that share a `state.url`."""

    #: Requests for one host that are sent through one exit in any 60 seconds.
    requests_per_minute: Count | None = None
    #: Open connections of one exit to one host at a time.
    connections: Count | None = None
    #: Between the beginnings of two requests for one host through one exit.
    min_interval: Seconds | None = None
    #: After the answer 403 or 429 an exit is not used for that host: as long as `Retry-After` says
    #: (of a 503 too), and so long if it says nothing. Seen in plain HTTP only (`http://`, not
    #: CONNECT). Left out: such answers mean nothing.
    cool_down: Seconds | None = None
    #: The longest time that `Retry-After` is followed.
    longest_cool_down: Seconds = 3600.0


class ExpectSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a page must be like to have come through an exit as it should."""

    #: The status that an answer must have. Left out: any below 500, since a page that has moved or
    #: wants a login has come through the exit all the same.
    status: Status | None = None
    #: A regular expression that is found in the first 64 KiB of the page.
    pattern: RegularExpression | None = None
    #: A field that the page has, which is JSON then: `ip`, or `geo.ip` for `ip` in `geo`.
    json: FieldPath | None = None


class CheckSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Active checks: pages that are fetched through each exit."""

    #: Pages that every exit has to fetch: `http://` or `https://`, two or more are best. Left out:
    #: no checks.
    urls: CheckUrls = ()
    #: Pages that return the address of their client, as text or JSON: by them gsocks learns the
    #: address that sites see of each exit. Exits with one address count as one for sessions. They
    #: are no checks. Left out: not learned.
    ip_urls: CheckUrls = ()
    #: Between two requests for the address of an exit.
    ip_interval: Seconds = 600.0
    #: A file in the MMDB format, which tells the countries of addresses. Left out: the data of the
    #: package iptocc do, if that is installed (`pip install 'gsocks[geo]'`).
    geo_file: Path | None = None
    #: Between two checks of an exit; up to 16 times that for an exit whose checks fail.
    interval: Seconds = 30.0
    #: For an answer.
    timeout: Seconds = 10.0
    #: What a page must be like.
    expect: ExpectSettings = ExpectSettings()
    #: Whether exits that have yet to work are asked in the background if they answer at all. Left
    #: out: where there are no `urls` and the exits come from a list, or are more than 16.
    connect: Switch | None = None


class SessionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a session keeps its exit."""

    #: After so long without a request a session is forgotten; its next request starts a new one.
    idle: Seconds = 600.0
    #: After so long a session moves to another exit; a client may ask for less (`lifetime`).
    longest: Seconds = 86400.0
    #: Whether a session that an exit has served fails, with the reason, when that exit can't be
    #: used, instead of moving to another one; a client may ask for it (`strict`).
    strict: Switch = False
    #: Whether the address of a client is its session where a request names none.
    by_client: Switch = False


class DnsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this machine looks names up."""

    #: Recursive name servers, in the order in which they are asked: `9.9.9.9`, `[2620:fe::fe]:53`,
    #: `tls://9.9.9.9#dns.quad9.net`, `https://9.9.9.9/dns-query#dns.quad9.net`, with the name of
    #: the certificate behind the `#`. Left out: those of /etc/resolv.conf.
    servers: NameServers = ()
    #: Domains that complete a name without a dot; `[]` for none. Left out: those of
    #: /etc/resolv.conf, or none if there are `servers`.
    search: Domains | None = None
    #: For an answer of one name server before the next one is asked as well.
    timeout: Seconds = 1.0
    #: For a name to be looked up, however many name servers are asked.
    total_timeout: Seconds = 5.0
    #: Names that are looked up at a time, in each worker. When there are more, the client that has
    #: most of them loses its oldest one.
    lookups: Count = 512
    #: Those of one client, which is a user at an address (IPv6: a /64), in their first second; its
    #: further names wait.
    lookups_per_client: Count = 128
    #: Names whose addresses are kept, in each worker, a quarter of them for one client at most; the
    #: least recently used one is evicted.
    cache_size: Count = 16384
    #: Addresses are kept for their TTL, but no shorter than this.
    min_ttl: Seconds = 5.0
    #: And no longer than this.
    max_ttl: Seconds = 3600.0
    #: The longest time for which "no such name" is kept.
    max_negative_ttl: Seconds = 5.0
    #: For so long behind their TTL, addresses are still used while no name server answers.
    max_stale: Seconds = 86400.0
