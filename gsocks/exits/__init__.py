"""The ways out: one file for each kind, and here the registry from a URL's scheme to its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gsocks.crypto import Cipher, Key, cipher_named
from gsocks.dial import Dialer, Resolver
from gsocks.errors import ConfigError
from gsocks.exits.base import Connected, Exit
from gsocks.exits.direct import DirectExit
from gsocks.exits.tunnel import TunnelExit
from gsocks.exits.url import ExitSpec
from gsocks.keyfile import read_key
from gsocks.limits import Timeouts
from gsocks.rules import ALLOW_ALL, Rules

__all__ = ["Connected", "Exit", "ExitSpec", "Ground", "make_exit"]


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

    def to_proxies(self) -> Dialer:
        """The dialer for proxies and servers: the operator named them, no rule stops them."""
        return Dialer(ALLOW_ALL, self.resolver, timeout=self.timeouts.connect)


def make_exit(spec: ExitSpec, ground: Ground) -> Exit:
    """The exit that ``spec`` describes.  Raises ConfigError."""
    try:
        make = _KINDS[spec.scheme]
    except KeyError:
        raise ConfigError(f"{spec.label}: there is no exit of that kind yet") from None
    return make(spec, ground)


def _direct(spec: ExitSpec, ground: Ground) -> Exit:
    dialer = Dialer(ground.rules, ground.resolver, timeout=ground.timeouts.connect)
    return DirectExit(dialer, spec.label)


def _tunnel(spec: ExitSpec, ground: Ground) -> Exit:
    return TunnelExit(
        spec.address,
        read_key(spec.key_file) if spec.key_file is not None else Key.parse(spec.key or ""),
        ground.to_proxies(),
        ciphers=cipher_named(spec.cipher) | Cipher.SECRETBOX,
        timeout=ground.timeouts.connect,
        pool_size=ground.pool_size,
        pool_max_idle=ground.pool_max_idle,
    )


_KINDS: dict[str, Callable[[ExitSpec, Ground], Exit]] = {
    "direct": _direct,
    "gsocks": _tunnel,
}
