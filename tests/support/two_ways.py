"""Both ways of a connection, by the hub and by greenlets; fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.errors import GsocksError
from gsocks.exits.base import Attempt, Connected
from gsocks.exits.direct import DirectExit
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Request
from gsocks.stream import BlockingInside

#: what connections have had done in greenlets
Spawned: TypeAlias = list[Callable[..., object]]

#: of a test that has to pass on either way
both_ways = pytest.mark.usefixtures("is_straight")


class BlockingExit(DirectExit):
    """The hub connects it, but its streams block, as those of an embedding program may."""

    def __init__(self) -> None:
        super().__init__(Dialer(ALLOW_ALL, Resolver()), "blocking")

    def begin(  # type: ignore[override]
        self, request: Request, done: Callable[[Connected | GsocksError | None], None]
    ) -> Attempt | None:
        def made(result: Connected | GsocksError | None) -> None:
            if isinstance(result, Connected):
                result = result._replace(stream=BlockingInside(result.stream))
            done(result)

        return super().begin(request, made)
