"""A local listener that goes out by itself or through a tunnel: what is tested is to do both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.exits.direct import DirectExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.observe import Record
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts
from tests.support.engine import Seen, make_exit, make_server, running_inbound
from tests.support.names import NamesBy

#: the addresses of a name, as a resolver asks for them
LookUp = Callable[[str], list[str]]


class Listeners:
    """A local end, however it goes out, and what each end has told."""

    def __init__(self, local: LocalServer, *ends: Seen) -> None:
        self.local = local
        #: of the local end, and of the server if there is one
        self.ends = ends

    @property
    def bound(self) -> Address:
        return self.local.bound

    @property
    def seen(self) -> Seen:
        """What the local end has told."""
        return self.ends[0]

    def next_records(self) -> list[Record]:
        return [seen.next() for seen in self.ends]


Open = Callable[..., Any]


def go_out(rules: Rules = ALLOW_ALL, names: LookUp | None = None) -> ExitGroup:
    """The exits of an end that reaches the web itself."""
    resolver = Resolver() if names is None else Resolver(NamesBy(names))
    return ExitGroup([DirectExit(Dialer(rules, resolver))], rules)


@contextmanager
def directly(
    listener: tuple[str, int] = ("127.0.0.1", 0),
    rules: Rules = ALLOW_ALL,
    names: LookUp | None = None,
    **options: Any,
) -> Iterator[Listeners]:
    seen = Seen()
    options = {"allow_anonymous": True, **options}
    inbound = LocalServer(listener, go_out(rules, names), observer=seen, **options)
    with running_inbound(inbound):
        yield Listeners(inbound, seen)


@contextmanager
def through_the_pair(
    listener: tuple[str, int] = ("127.0.0.1", 0),
    rules: Rules = ALLOW_ALL,
    names: LookUp | None = None,
    timeouts: Timeouts = Timeouts(),
    **options: Any,
) -> Iterator[Listeners]:
    at_local, at_server = Seen(), Seen()
    server = make_server(exit_group=go_out(rules, names), timeouts=timeouts, observer=at_server)
    with running_inbound(server):
        ways = ExitGroup(
            [make_exit(server.bound, pool_size=1)], ALLOW_ALL, timeout=timeouts.connect
        )
        options = {"allow_anonymous": True, "timeouts": timeouts, **options}
        inbound = LocalServer(listener, ways, observer=at_local, **options)
        with running_inbound(inbound):
            yield Listeners(inbound, at_local, at_server)


def both_ways(argument: str, **options: Any) -> pytest.MarkDecorator:
    """Has a test open its listener either way, with ``options``, by the parameter of this name."""
    ways = [partial(directly, **options), partial(through_the_pair, **options)]
    return pytest.mark.parametrize(argument, ways, ids=["directly", "through the pair"])
