"""A long link of packets: a network interface that gives back what it is sent, a little later.

    python -m bench.link.tun PORT SECONDS     prints the two addresses and the port; until killed

The interface has the address NEAR and leads to FAR, where there is no machine.  A packet to FAR
comes back with its two addresses exchanged, so the kernel takes it for one from FAR to NEAR: a
program that listens on NEAR is found at FAR.  The exchange leaves IP and TCP checksums right,
because a sum does not depend on the order.  The interface is gone when this process is.

Network namespaces and netem would do the same, where the kernel has netem.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque

# RFC 2544: a network for benchmarks, which no other use may have
NEAR = "198.18.71.1"
FAR = "198.18.71.2"
_MASK = "255.255.255.252"

# linux/if_tun.h, linux/sockios.h
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C

_LARGEST_PACKET = 65536


def make_interface() -> int:
    """A network interface that is up; returns its descriptor.  Raises OSError."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    made = fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"bench%d", _IFF_TUN_WITHOUT_HEADER))
    name = made[:16]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((_SIOCSIFADDR, NEAR), (_SIOCSIFNETMASK, _MASK)):
            sockaddr = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, request, name + sockaddr + bytes(8))
        fcntl.ioctl(control, _SIOCSIFFLAGS, name + struct.pack("H22x", _IFF_UP_RUNNING))
    return tun


def reflect(tun: int, delay: float) -> None:
    """Give every packet back after ``delay`` seconds, for ever."""
    under_way: deque[tuple[float, bytes]] = deque()
    poll = select.poll()
    poll.register(tun, select.POLLIN)
    while True:
        wait = None
        if under_way:
            wait = max(0.0, under_way[0][0] - time.monotonic()) * 1000
        if poll.poll(wait):
            packet = os.read(tun, _LARGEST_PACKET)
            if packet[0] >> 4 == 4:
                back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                under_way.append((time.monotonic() + delay, back))
        while under_way and under_way[0][0] <= time.monotonic():
            os.write(tun, under_way.popleft()[1])


def main() -> None:
    port, delay = int(sys.argv[1]), float(sys.argv[2])
    tun = make_interface()
    print(NEAR, FAR, port, flush=True)
    reflect(tun, delay)


if __name__ == "__main__":
    main()
