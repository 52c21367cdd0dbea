"""A network of this test alone, whose addresses it may change (needs root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, get_errno

from tests.support.waiting import TOO_LONG, eventually

_CLONE_NEWNET = 0x40000000


@contextmanager
def private_network() -> Iterator[None]:
    """This thread, and the processes that it starts, are in a network namespace of their own.

    It has nothing but loopback and ``card``, an interface with a cable that leads nowhere.
    """
    with open("/proc/self/ns/net") as outside:
        _call("unshare", _CLONE_NEWNET)
        try:
            ip("link set lo up")
            ip("link add card type veth peer name cable")
            ip("link set card up")
            ip("link set cable up")
            # the kernel gives it an address when it is ready, and makes none local before
            eventually(lambda: "inet6" in ip("-6 address show dev card"))
            yield
        finally:
            _call("setns", outside.fileno(), _CLONE_NEWNET)


def ip(command: str) -> str:
    """The output of ``ip`` with the words of ``command``."""
    done = subprocess.run(
        ["ip", *command.split()], check=True, stdout=subprocess.PIPE, text=True, timeout=TOO_LONG
    )
    return done.stdout


def _call(name: str, *arguments: int) -> None:
    if getattr(CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(get_errno(), os.strerror(get_errno()))
