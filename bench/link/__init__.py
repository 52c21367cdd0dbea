"""A long link on one machine: what is sent to its far address arrives after a while.

tun.py delays packets, so that the kernel's own TCP pays for every round trip.  It needs the right
to make a network interface; without that, relay.py delays the bytes of connections and charges
for their opening.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.link import tun
from bench.load.route import Place
from bench.processes import Failed, ended_after, start

#: seconds for a round trip
ROUND_TRIP = 0.1


class Link(NamedTuple):
    """A link to one port."""

    #: where the far end has to listen
    far: Place
    #: where the near end finds it
    far_seen: Place


@contextlib.contextmanager
def long_link(port: int, folder: Path) -> Iterator[Link]:
    """A link to the program that listens on ``port`` of :attr:`Link.far`."""
    for kind in ("tun", "relay"):
        argv = [sys.executable, "-m", f"bench.link.{kind}", str(port), str(ROUND_TRIP / 2)]
        with (folder / f"{kind}.log").open("wb") as log:
            process = start(argv, folder, stdout=subprocess.PIPE, stderr=log)
        with ended_after([process]):
            assert process.stdout is not None
            if said := process.stdout.readline().decode().split():
                far_host, seen_host, seen_port = said
                yield Link(Place(far_host, port), Place(seen_host, int(seen_port)))
                return
    raise Failed("neither kind of long link could be made")


def kind_of_link() -> str:
    """Which kind it will be on this machine, for the results."""
    try:
        os.close(tun.make_interface())
    except OSError:
        return "a delaying relay"
    return "packets delayed on a TUN device"
