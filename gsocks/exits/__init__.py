"""The ways out: one file for each kind, and here the registry from a URL's scheme to its kind."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from gsocks.crypto import Cipher, Key, cipher_named
from gsocks.dial import Dialer, Resolver
from gsocks.exits.base import Connected, Exit
from gsocks.exits.credentials import Credentials
from gsocks.exits.direct import DirectExit, SourceNetwork
from gsocks.exits.http import HttpExit
from gsocks.exits.socks import Socks4aExit, Socks5Exit
from gsocks.exits.tunnel import TunnelExit
from gsocks.exits.url import ExitSpec
from gsocks.exits.via import Chain, Detour
from gsocks.keyfile import read_key
from gsocks.limits import Timeouts
from gsocks.rules import ALLOW_ALL, Rules

__all__ = ["Connected", "Exit", "ExitSpec", "Ground", "make_exit"]


@cache
def trust() -> ssl.SSLContext:
    """Whom https:// proxies are believed: the system's authorities, or those in SSL_CERT_FILE.

    Made when the first one asks, and shared: it takes 20 ms and megabytes.
    """
    context = ssl.create_default_context()
    context.options |= ssl.OP_NO_RENEGOTIATION  # TLS 1.3 has none, and nobody misses it
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(frozen=True)
class Ground:
    """What all exits of a door stand on."""

    #: asked by ``direct`` for every address that it is about to connect to
    rules: Rules
    resolver: Resolver = field(default_factory=Resolver)
    timeouts: Timeouts = Timeouts()
    #: tunnels kept ready for each gsocks exit, and seconds until an unused one is let go
    pool_size: int = 8
    pool_max_idle: float = 300.0
    random: Random = field(default_factory=Random)
    #: whom the proxies of https:// exits are believed
    trust: Callable[[], ssl.SSLContext] = trust

    def to_proxies(self) -> Dialer:
        """The dialer for proxies and servers: the operator named them, no rule stops them."""
        return Dialer(ALLOW_ALL, self.resolver, timeout=self.timeouts.connect)


def make_exit(spec: ExitSpec, ground: Ground) -> Exit:
    """The exit that ``spec`` describes.  Raises ConfigError."""
    make = _KINDS[spec.scheme]
    if spec.via is None:
        return make(spec, ground, DirectExit(ground.to_proxies()))
    # where it goes is the operator's word, as it is without a detour
    through = make_exit(spec.via, replace(ground, rules=ALLOW_ALL))
    return Chain(make(spec, ground, through), through, spec.label)


def _direct(spec: ExitSpec, ground: Ground, _: Exit) -> Exit:
    network = spec.source
    dialer = Dialer(
        ground.rules,
        ground.resolver,
        timeout=ground.timeouts.connect,
        source=None if network is None else SourceNetwork(network, ground.random),
        freebind=network is not None and network.version == 6,
    )
    return DirectExit(dialer, spec.label)


def _tunnel(spec: ExitSpec, ground: Ground, through: Exit) -> Exit:
    return TunnelExit(
        spec.address,
        read_key(spec.key_file) if spec.key_file is not None else Key.parse(spec.key or ""),
        Detour(through, ground.timeouts),
        ciphers=cipher_named(spec.cipher) | Cipher.SECRETBOX,
        timeout=ground.timeouts.connect,
        pool_size=ground.pool_size,
        pool_max_idle=ground.pool_max_idle,
    )


def _socks5(spec: ExitSpec, ground: Ground, through: Exit) -> Exit:
    return Socks5Exit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        timeout=ground.timeouts.connect,
    )


def _socks4a(spec: ExitSpec, ground: Ground, through: Exit) -> Exit:
    return Socks4aExit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        timeout=ground.timeouts.connect,
    )


def _http(spec: ExitSpec, ground: Ground, through: Exit) -> Exit:
    return HttpExit(
        spec.address,
        through,
        label=spec.label,
        credentials=_credentials(spec),
        tls=ground.trust() if spec.scheme == "https" else None,
        timeout=ground.timeouts.connect,
    )


def _credentials(spec: ExitSpec) -> Credentials | None:
    if spec.user is None:
        return None
    return Credentials(spec.user, spec.password or "", spec.country)


_KINDS: dict[str, Callable[[ExitSpec, Ground, Exit], Exit]] = {
    "direct": _direct,
    "gsocks": _tunnel,
    "socks5": _socks5,
    "socks4a": _socks4a,
    "http": _http,
    "https": _http,
}
