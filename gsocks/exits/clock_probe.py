"""Finds out by how much the clock of a gsocks server differs, if that is why it does not answer.

A server answers no hello whose time is more than 30 s from its own, so as to answer no stranger;
but it answers one that says the right time, whatever this machine's clock says.  So hellos of many
times are sent at once: near ones, as of a clock that drifts, and whole time zones, as of a clock
that was set to local time.
"""

from __future__ import annotations

from gevent.pool import Pool

from gsocks.deadline import call_with_timeout
from gsocks.errors import GsocksError
from gsocks.exits.tunnel import TunnelExit
from gsocks.replay import now_ms

#: seconds between two hellos, each of which finds a clock that is 30 s off to either side
_STEP = 50

#: seconds to either side that are looked at closely, and time zones that are (in half hours)
_NEAR = 15 * 60
_ZONES = 2 * 14

_AT_ONCE = 40


def offsets() -> list[int]:
    """The seconds by which the server's clock may be ahead, the nearest first."""
    near = range(-_NEAR, _NEAR + 1, _STEP)
    zones = (half * 1800 + near for half in range(-_ZONES, _ZONES + 1) for near in (-40, 0, 40))
    return sorted({*near, *zones}, key=abs)


def find_clock(exit_: TunnelExit, timeout: float) -> int | None:
    """By how many seconds, within 30, the server's clock is ahead of this one's; None: not found.

    ``timeout``: seconds for each hello, of which 40 are waited for at a time.
    """
    found: list[int] = []

    def ask(offset: int) -> None:
        if found:
            return
        try:
            tunnel = call_with_timeout(
                timeout, exit_.agree, now_ms() + offset * 1000, on_timeout=None
            )
        except GsocksError:
            return
        if tunnel is not None:
            tunnel.close()
            found.append(offset)

    pool = Pool(_AT_ONCE)
    for offset in offsets():
        pool.spawn(ask, offset)
    pool.join()
    return min(found, key=abs) if found else None
