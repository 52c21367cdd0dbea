"""Exits: one module for each kind, and here the registry from a URL's scheme to its kind."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from random import Random

from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES, Rules
from gsocks.address import Address
from gsocks.crypto import Cipher, Key, cipher_named
from gsocks.exits.absolute import HttpForwardExit
from gsocks.exits.base import Connected, Exit
from gsocks.exits.chain import Chain, Detour
from gsocks.exits.client_tls import ClientTls, FileContexts, prepared
from gsocks.exits.credentials import Credentials
from gsocks.exits.direct import DirectExit, SourcedExit, SourceNetwork
from gsocks.exits.socks import Socks4aExit, Socks4Exit, Socks5Exit
from gsocks.exits.spec import ExitSpec, TlsOptions
from gsocks.exits.tunnel import TunnelExit
from gsocks.exits.unix import UnixSocketExit
from gsocks.keyfile import read_key
from gsocks.net.dial import Dialer
from gsocks.net.own_listeners import OwnListeners
from gsocks.net.resolve import Resolver
from gsocks.net.route import Route, warn_if_unusable
from gsocks.settings import PoolSettings, Timeouts
from gsocks.transport.client import ClientTransport, WebSocketRequest
from gsocks.transport.options import OVER_TLS, OVER_WEBSOCKET

__all__ = ["Connected", "Exit", "ExitDeps", "ExitSpec", "make_exit"]


@cache
def trust() -> ssl.SSLContext:
    """The TLS context for https:// proxies: the system's authorities, or those in SSL_CERT_FILE.

    Created at the first use and then shared: it takes 20 ms and megabytes.
    """
    return prepared(ssl.create_default_context())


#: the ports that a Host leaves out
_WEB_PORTS = {"ws": 80, "wss": 443}

#: shared by exits that have the same files, as those of one list may
_file_contexts = lru_cache(maxsize=256)(FileContexts)


@dataclass(frozen=True)
class ExitDeps:
    """The dependencies that all exits of a listener share."""

    #: checked for every address that is resolved here: by ``direct`` and ``socks4``
    rules: Rules
    resolver: Resolver = field(default_factory=Resolver)
    timeouts: Timeouts = Timeouts()
    #: tunnels kept ready for each gsocks exit
    pool: PoolSettings = PoolSettings()
    random: Random = field(default_factory=Random)
    #: makes the TLS context for https:// exits
    trust: Callable[[], ssl.SSLContext] = trust
    #: those that no exit may be
    own_listeners: OwnListeners = field(default_factory=OwnListeners)

    @cached_property
    def to_proxies(self) -> DirectExit:
        """The way to proxies and servers: no rules apply to what the operator configured."""
        return self._to(ALLOW_ALL)

    @cached_property
    def to_public_proxies(self) -> DirectExit:
        """The same to those that another party has named: private addresses are denied."""
        return self._to(DEFAULT_RULES)

    def _to(self, rules: Rules) -> DirectExit:
        return DirectExit(
            Dialer(
                rules,
                self.resolver,
                timeout=self.reach_timeout,
                own_listeners=self.own_listeners,
            )
        )

    @cached_property
    def reach_timeout(self) -> float:
        """Seconds for an exit itself to be reached."""
        return min(self.timeouts.exit, self.timeouts.connect)


def make_exit(spec: ExitSpec, deps: ExitDeps) -> Exit:
    """The exit that ``spec`` describes.  Raises ConfigError."""
    make = _KINDS[spec.scheme]
    if spec.socket is not None:
        return make(spec, deps, UnixSocketExit(spec.socket, deps.reach_timeout))
    if spec.via is None:
        return make(spec, deps, deps.to_public_proxies if spec.public else deps.to_proxies)
    # the address of a proxy is the operator's choice, so no rules apply to it
    via = spec.via.replaced(public=True) if spec.public else spec.via
    through = make_exit(via, replace(deps, rules=ALLOW_ALL))
    return Chain(make(spec, deps, through), through, spec.label)


def _direct(spec: ExitSpec, deps: ExitDeps, _: Exit) -> Exit:
    network, route = spec.source, Route(spec.interface, spec.mark)
    has_route = route != Route()
    if has_route:
        warn_if_unusable(route)
    dialer = Dialer(
        deps.rules,
        deps.resolver,
        timeout=deps.timeouts.connect,
        freebind=network is not None and network.version == 6,
        route=route if has_route else None,
    )
    if network is None:
        return DirectExit(dialer, spec.label)
    return SourcedExit(dialer, SourceNetwork(network, deps.random), spec.label)


def _tunnel(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    return TunnelExit(
        spec.address,
        _key(spec),
        Detour(through, deps.timeouts),
        ciphers=cipher_named(spec.cipher) | Cipher.SECRETBOX,
        timeout=deps.timeouts.connect,
        # a hop of a chain may take as long as the exit itself
        reach_timeout=min(spec.hops * deps.timeouts.exit, deps.timeouts.connect),
        pool=deps.pool,
        transport=_transport(spec, deps),
    )


def _key(spec: ExitSpec) -> Key:
    if spec.key_from is not None:
        return spec.key_from.read()
    return read_key(spec.key_file) if spec.key_file is not None else Key.parse(spec.key or "")


def _transport(spec: ExitSpec, deps: ExitDeps) -> ClientTransport | None:
    """What the tunnels of an exit travel in; None: TCP alone."""
    if spec.transport is None:
        return None
    kind, path, host = spec.transport
    request = None
    if kind in OVER_WEBSOCKET:
        request = WebSocketRequest(host or _host_header(spec, kind), path)
    return ClientTransport(_tls(spec, deps).layer if kind in OVER_TLS else None, request)


def _host_header(spec: ExitSpec, kind: str) -> str:
    """What a browser would send as Host for that URL."""
    name = spec.tls.sni if spec.tls is not None and spec.tls.sni is not None else spec.host
    text = str(Address(name, spec.port))
    return text.rpartition(":")[0] if spec.port == _WEB_PORTS[kind] else text


def _socks5(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    return Socks5Exit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        tls=_tls(spec, deps) if spec.scheme == "socks5s" else None,
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _socks4a(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    return Socks4aExit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _socks4(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    return Socks4Exit(
        spec.address,
        through,
        Dialer(deps.rules, deps.resolver).allowed_addresses,
        label=spec.label,
        credentials=_credentials(spec),
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _http(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    return HttpForwardExit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        tls=_tls(spec, deps) if spec.scheme == "https" else None,
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _shadowsocks(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    # here, since most programs do without it
    from gsocks.exits.shadowsocks import ShadowsocksExit

    return ShadowsocksExit(
        spec.address,
        through,
        spec.cipher,
        spec.password or "",
        label=spec.label,
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _trojan(spec: ExitSpec, deps: ExitDeps, through: Exit) -> Exit:
    # here, as _shadowsocks
    from gsocks.exits.trojan import TrojanExit

    return TrojanExit(
        spec.address,
        through,
        spec.password or "",
        _tls(spec, deps),
        label=spec.label,
        timeout=deps.timeouts.connect,
        reach_timeout=deps.reach_timeout,
    )


def _tls(spec: ExitSpec, deps: ExitDeps) -> ClientTls:
    options = spec.tls or TlsOptions()
    if spec.scheme == "socks5s":  # ALPN has no name for it
        options = options._replace(alpn=())
    own = options._replace(sni=None)
    contexts = deps.trust if own == TlsOptions() else _file_contexts(own)
    return ClientTls(options.sni or spec.host, contexts)


def _credentials(spec: ExitSpec) -> Credentials | None:
    if spec.user is None:
        return None
    return Credentials(spec.user, spec.password or "", spec.country)


_KINDS: dict[str, Callable[[ExitSpec, ExitDeps, Exit], Exit]] = {
    "direct": _direct,
    "gsocks": _tunnel,
    "socks5": _socks5,
    "socks5s": _socks5,
    "socks4": _socks4,
    "socks4a": _socks4a,
    "http": _http,
    "https": _http,
    "ss": _shadowsocks,
    "trojan": _trojan,
}
