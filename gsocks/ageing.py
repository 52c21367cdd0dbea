"""How long the keys of one tunnel serve.

A thief of a tunnel's keys, from the memory of either end, can open all that was recorded of it
so far.  So a tunnel that has reached an age or a volume carries no other stream: it is
closed, and its keys are gone.  A stream that is open is never cut.

Each tunnel draws its own bounds, so that those that were opened together don't end together.
"""

from __future__ import annotations

import time
from random import Random

from gsocks.net.tcp_info import BYTES_ACKED, BYTES_RECEIVED, read_tcp_info
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import MAX_BODY

#: between which parts of a bound each tunnel draws its own
SHARES = (0.75, 1.0)


def draw_bounds(tunnel: ClientTunnel, max_age: float, max_volume: float, random: Random) -> None:
    """Give a tunnel that was opened just now its bounds, in seconds and in bytes."""
    tunnel.expires_at = time.monotonic() + max_age * random.uniform(*SHARES)
    tunnel.max_volume = max_volume * random.uniform(*SHARES)
    tunnel.boxes_in_volume = tunnel.max_volume // MAX_BODY


def is_worn(tunnel: ClientTunnel) -> bool:
    """Whether an open tunnel whose stream has ended just now has reached one of its bounds.

    The bytes are those that travelled, in both directions together.  Counting them would cost each
    frame something; the boxes are counted anyway, and two of them, of a header and a body, have
    never more than twice ``MAX_BODY``.  Where so many would be too much the kernel is asked; if it
    can't tell, they are.
    """
    if tunnel.last_heard >= tunnel.expires_at:
        return True
    boxes = tunnel.boxes
    if boxes <= tunnel.boxes_in_volume:
        return False
    info = read_tcp_info(tunnel.fileno(), BYTES_ACKED, BYTES_RECEIVED)
    if info is None:
        return True
    left = tunnel.max_volume - sum(info)
    tunnel.boxes_in_volume = boxes + left // MAX_BODY
    return left < 0
