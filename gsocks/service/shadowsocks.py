"""The listeners of ``server.shadowsocks``: made here, so that no other program imports them."""

from __future__ import annotations

from typing import NamedTuple

from gsocks import config
from gsocks.address import Address
from gsocks.inbound.options import ForwardOptions, ListenerOptions
from gsocks.inbound.quota import UserQuota
from gsocks.inbound.shadowsocks import ShadowsocksServer
from gsocks.inbound.shadowsocks_udp import ShadowsocksDatagrams
from gsocks.net.endpoint import Endpoint
from gsocks.observe import Observer
from gsocks.rotation.group import ExitGroup
from gsocks.service.openings import Opening, Openings
from gsocks.service.plan import make_shadowsocks_keys
from gsocks.settings import ForwardUdpSettings
from gsocks.shadowsocks.accept import Guards


class Opened(NamedTuple):
    """Where Shadowsocks clients come in."""

    tcp: list[tuple[Opening, Endpoint]]
    udp: list[tuple[Opening, Endpoint]]

    def of_worker(self, number: int) -> Opened:
        """The same with what that worker listens at.  Raises ConfigError."""
        return Opened(_of_worker(number, self.tcp), _of_worker(number, self.udp))


def open_all(settings: config.Shadowsocks, openings: Openings) -> Opened:
    """Open the ports of TCP, and where there are addresses the same ones of UDP.

    Raises ConfigError.
    """
    opened = Opened([], [])
    for endpoint in settings.listen:
        for opening in openings.open(endpoint):
            opened.tcp.append((opening, endpoint))
            if settings.udp and isinstance(endpoint, Address):
                udp = openings.open(opening.bound, udp=True)
                opened.udp.extend((each, endpoint) for each in udp)
    return opened


def _of_worker(
    number: int, places: list[tuple[Opening, Endpoint]]
) -> list[tuple[Opening, Endpoint]]:
    found = ((opening.of_worker(number), endpoint) for opening, endpoint in places)
    return [(own, endpoint) for own, endpoint in found if own is not None]


class ShadowsocksListeners:
    """All of them in one process.  ``guards``: made before the fork."""

    def __init__(
        self,
        server: config.Server,
        settings: config.Shadowsocks,
        opened: Opened,
        exits: ExitGroup,
        quota: UserQuota,
        observer: Observer,
        guards: Guards,
    ) -> None:
        keys = make_shadowsocks_keys(settings)
        options = ListenerOptions(
            timeouts=server.timeouts,
            limits=server.limits,
            clients=server.clients,
            proxy_protocol_from=server.proxy_protocol_from,
            quota=quota,
            observer=observer,
        )
        self.tcp = [
            ShadowsocksServer(opening.socket, exits, keys, guards, options)
            for opening, _ in opened.tcp
        ]
        of_datagrams = ForwardOptions(
            timeouts=server.timeouts,
            limits=server.limits,
            clients=server.clients,
            quota=quota,
            observer=observer,
            udp=ForwardUdpSettings(associations=settings.associations, idle=settings.udp_idle),
        )
        self.udp = [
            ShadowsocksDatagrams(opening.socket, exits, keys, guards, of_datagrams)
            for opening, _ in opened.udp
        ]

    def replace_keys(self, settings: config.Shadowsocks) -> None:
        """Take the passwords of ``settings``.  Raises ConfigError."""
        keys = make_shadowsocks_keys(settings)
        for server in self.tcp:
            server.replace_keys(keys)
        for datagrams in self.udp:
            datagrams.replace_keys(keys)


def guards_of(settings: config.Shadowsocks) -> Guards:
    """What must not come twice, for all workers.  Raises ConfigError."""
    return Guards.of(make_shadowsocks_keys(settings))
