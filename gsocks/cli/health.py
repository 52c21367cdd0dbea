"""``gsocks health``: whether the listeners of a config accept connections, for the health checks of
containers and balancers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from gsocks import config
from gsocks.address import Address
from gsocks.cli.warn import warn_of_mistake
from gsocks.net.endpoint import Endpoint, UnixPath

#: exit status if a listener accepts no connection
UNHEALTHY = 1

#: seconds for each listener
TIMEOUT = 2.0

_NEEDED = {
    **dict.fromkeys(("local", "admin", "redirect", "dns_listener"), ("listen",)),
    "server": ("listen", "shadowsocks"),
    "forwards": ("routes",),
}


def health(path: Path) -> int:
    """0 if all listeners of TCP and Unix accept, else UNHEALTHY; a line tells which does not.

    Sockets that are passed on and UDP are not looked at, nor is, while the config has mistakes, a
    section whose addresses have one.  Raises ConfigError.
    """
    healthy = True
    found, mistake = config.load_partly(path, _NEEDED)
    warn_of_mistake(mistake, "where its sections listen")
    for name, endpoint in _listeners(found):
        reason = _failure(endpoint)
        if reason is not None:
            print(f"{name}: {endpoint}: {reason}")
            healthy = False
    return 0 if healthy else UNHEALTHY


def _listeners(settings: config.Config) -> Iterator[tuple[str, Endpoint]]:
    for name in ("server", "local", "admin"):
        section = getattr(settings, name)
        addresses = section.listen if name == "admin" and section is not None else ()
        for endpoint in addresses or (() if section is None else section.addresses):
            yield name, endpoint
    for name in ("redirect", "dns_listener"):
        section = getattr(settings, name)
        yield from ((name, each) for each in (() if section is None else section.addresses))
    if settings.forwards is not None:
        yield from (("forwards", leg.listen) for leg in settings.forwards.legs if not leg.route.udp)


def _failure(endpoint: Endpoint) -> str | None:
    try:
        if isinstance(endpoint, UnixPath):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect(endpoint.path)
        elif isinstance(endpoint, Address) and endpoint.port:
            host = endpoint.host
            if endpoint.is_unspecified:
                host = "::1" if ":" in host else "127.0.0.1"
            socket.create_connection((host, endpoint.port), TIMEOUT).close()
    except OSError as error:
        return error.strerror or "no answer"
    return None
