"""Connections that are opened, have been used once, and then stay open and silent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial

from bench.load.conversation import ask
from bench.load.crowd import talk
from bench.load.route import Route
from bench.load.target import ECHO

_MESSAGE = ECHO * 100
_AT_ONCE = 32


@contextlib.contextmanager
def open_connections(route: Route, count: int) -> Iterator[None]:
    """``count`` connections to the target, each of which has had an answer."""
    socks: list[socket.socket] = []
    try:
        conversation = partial(ask, message=_MESSAGE, answer_size=len(_MESSAGE))
        talk(route, conversation, count, at_once=_AT_ONCE, keep=socks)
        yield
    finally:
        for sock in socks:
            sock.close()
