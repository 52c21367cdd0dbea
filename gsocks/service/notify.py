"""What a service tells its supervisor, as systemd's: ready, reloading, stopping, alive.

The protocol is that of sd_notify(3): datagrams to the Unix socket NOTIFY_SOCKET, of lines such as
``READY=1``.  Nothing is said where no supervisor has asked for it.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import MutableMapping

_BEAT = struct.Struct("d")


class Notifier:
    """Tells the supervisor of the main process.

    Made by :meth:`take` in that process; a child that inherits it is not listened to.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        #: seconds without a sign of life after which the supervisor kills the service; None: never
        self.watchdog = watchdog

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """What the environment says, from which it is removed: no other program is meant."""
        address = environ.pop("NOTIFY_SOCKET", None)
        microseconds = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", None)
        watchdog = None
        if microseconds.isascii() and microseconds.isdigit() and pid in (None, str(os.getpid())):
            watchdog = int(microseconds[:18]) / 1e6 or None
        if not address or address[0] not in "/@":
            return cls()
        return cls(address, watchdog)

    @property
    def interval(self) -> float | None:
        """Seconds between two signs of life; None: none are wanted."""
        return None if self.watchdog is None else self.watchdog / 3

    def ready(self, status: str) -> None:
        """It serves, at its start or after a reload."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload has begun, after which :meth:`ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """It serves no new client."""
        self._say("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """The sign of life."""
        if self.watchdog is not None:
            self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), address)
        except OSError:
            pass  # who has asked for it does not listen any more


class Heartbeats:
    """When each worker has turned its event loop last: in memory that forked workers share."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._memory = mmap.mmap(-1, count * _BEAT.size)

    def beat(self, index: int) -> None:
        """That worker lives."""
        _BEAT.pack_into(self._memory, index * _BEAT.size, time.monotonic())

    def forget(self, index: int) -> None:
        """That worker is started anew."""
        _BEAT.pack_into(self._memory, index * _BEAT.size, 0.0)

    def last(self, index: int) -> float:
        """Monotonic seconds; 0 if it has not begun to serve."""
        beat: float = _BEAT.unpack_from(self._memory, index * _BEAT.size)[0]
        return beat

    @property
    def all_serve(self) -> bool:
        """Whether all workers have begun to serve."""
        return all(self.last(index) for index in range(self._count))
