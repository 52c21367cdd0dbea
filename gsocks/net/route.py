"""By which way a socket leaves this machine: an interface, and a mark for the kernel's rules.

The mark is what ``ip rule ... fwmark`` and nftables' ``meta mark`` look at, by which connections
have a routing table of their own.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
from functools import lru_cache
from typing import NamedTuple

from gsocks.errors import ExitFailed
from gsocks.sock import AnySocket

log = logging.getLogger("gsocks.exits")

#: bytes of an interface's name: IFNAMSIZ of linux/if.h, without its end
_MAX_NAME = 15
# dev_valid_name of the kernel: no slash, no colon and no blanks
_NAME = re.compile(rf"[!-.0-9;-~]{{1,{_MAX_NAME}}}")
_MAX_MARK = 0xFFFFFFFF

#: why the kernel refuses an option, where that is not clear
_REASONS = {
    errno.ENODEV: "there is no such interface",
    errno.EPERM: "not permitted (gsocks needs the capability CAP_NET_ADMIN for that)",
}


class Route(NamedTuple):
    """The way of an exit's sockets; without either the kernel chooses it alone."""

    interface: str | None = None
    mark: int | None = None

    def apply(self, sock: AnySocket | socket.socket) -> None:
        """Have ``sock``, which is neither bound nor connected, go that way.  Raises ExitFailed."""
        if self.interface is not None:
            self._set(sock, "interface", socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
        if self.mark is not None:
            # setsockopt takes a signed number
            value = self.mark.to_bytes(4, "little")
            self._set(sock, "mark", socket.SO_MARK, int.from_bytes(value, "little", signed=True))

    def check(self) -> None:
        """Raise ExitFailed if the way can't be gone now."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            self.apply(sock)

    def _set(
        self, sock: AnySocket | socket.socket, name: str, option: int, value: int | bytes
    ) -> None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:
            why = _REASONS.get(error.errno or 0, error.strerror)
            raise ExitFailed(f"{name} {getattr(self, name)}: {why}") from None


@lru_cache(maxsize=256)  # the exits of a list have few among them
def warn_if_unusable(route: Route) -> None:
    """Tell in the log if the way can't be gone now; an interface may come later."""
    try:
        route.check()
    except ExitFailed as error:
        log.warning("direct exits can't connect yet: %s", error)


def parse_interface(value: object) -> str:
    """The name of a network interface.  Raises ValueError."""
    text = "" if isinstance(value, bool) else str(value)
    if text in (".", "..") or not _NAME.fullmatch(text):
        raise ValueError("is not the name of a network interface (expected e.g. eth0)")
    return text


def parse_mark(value: object) -> int:
    """A mark, in decimal or as 0x1f.  Raises ValueError."""
    text = "" if isinstance(value, bool) else str(value).lower()
    try:
        mark = int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        mark = 0
    if not 1 <= mark <= _MAX_MARK or not text.isascii():
        raise ValueError("is not a mark (expected a number from 1 to 0xffffffff)")
    return mark
