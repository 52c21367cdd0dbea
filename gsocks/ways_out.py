"""Which exit serves a request, and what happens when it can't."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import gevent

from gsocks.address import Address
from gsocks.datagram import Screened
from gsocks.errors import (
    CommandNotSupported,
    ConfigError,
    ConnectTimeout,
    ExitDoubtful,
    Fault,
    Forbidden,
    GsocksError,
    LimitReached,
)
from gsocks.exits.base import Associates, Binds, Connected, Exit, Listening
from gsocks.request import Command, Request
from gsocks.rotation.policy import Candidate, Policy, RoundRobin
from gsocks.rules import Rules, Verdict
from gsocks.stream import Stream


class Offer(NamedTuple):
    """An exit, and how it may be used."""

    exit: Exit
    #: how much of the traffic, in proportion to the other exits' weights
    weight: float = 1.0
    #: connections through it at a time; None: no bound
    max_connections: int | None = None


class Way(NamedTuple):
    """A connected request."""

    stream: Stream
    #: the true bound address at the far end
    bound: Address
    #: the label of the exit that serves it
    exit: str
    #: to be called once, when the stream is closed: the exit has one connection less
    release: Callable[[], None]


class WaysOut:
    """The exits behind a door, and the rules for what may be asked of them.

    ``policy``: which exit is asked first, and which one after it; None is round robin.
    ``timeout``: seconds in which a request must be connected, whatever is tried for it.
    ``tries``: how many exits a request may try, while nothing has flowed.
    """

    def __init__(
        self,
        exits: Sequence[Exit | Offer],
        rules: Rules,
        *,
        policy: Policy | None = None,
        timeout: float = 10.0,
        tries: int = 3,
    ) -> None:
        if not exits:
            raise ConfigError("no exits: there is no way out")
        offers = [each if isinstance(each, Offer) else Offer(each) for each in exits]
        self._standings = [_Standing(number, offer) for number, offer in enumerate(offers)]
        self._full: set[_Standing] = set()
        self._rules = rules
        self._policy = policy or RoundRobin()
        self._timeout = timeout
        self._tries = tries
        self._doors = 0

    def start(self) -> None:
        """Let every exit begin to prepare.  Each door that shares these ways calls it."""
        self._doors += 1
        for standing in self._standings:
            standing.exit.start()

    def close(self) -> None:
        """Let go what is idle in every exit, if no other door needs it."""
        self._doors -= 1
        if self._doors > 0:
            return
        for standing in self._standings:
            standing.exit.close()

    def connect(self, request: Request, tried: Callable[[str], None]) -> Way:
        """Reach the destination by one exit, or by the next ones if it fails.

        ``tried`` is told the label of each exit that is asked.  Raises ConnectFailed or
        ClientError: the destination's failure at once, the last exit's own when all have failed,
        LimitReached where every exit has as many connections as it may have.
        """
        self._ask_rules(request)
        standing, made = self._reach(request, tried)
        connected: Connected = made
        return Way(*connected, standing.exit.label, partial(self._leave, standing))

    def associate(
        self, request: Request, tried: Callable[[str], None], sent_to: Callable[[Address], None]
    ) -> Way:
        """Have an exit carry the datagrams of an association; the way's stream is one of them.

        The rules are asked about the destination of each.  ``sent_to`` is told every destination
        that they don't deny, when it is new.  Raises as :meth:`connect` does, and
        CommandNotSupported where no exit carries datagrams.
        """
        standing, made = self._reach(request, tried)
        connected: Connected = made

        def allows(dest: Address) -> bool:
            if self._rules.before_resolving(dest, request.user).verdict is Verdict.DENY:
                return False
            sent_to(dest)
            return True

        stream = Screened(connected.stream, allows)
        return Way(stream, connected.bound, standing.exit.label, partial(self._leave, standing))

    def bind(
        self,
        request: Request,
        tried: Callable[[str], None],
        seconds: float,
        waits: Callable[[Listening, str], None],
    ) -> Way:
        """Have an exit wait for a connection from the destination, or where that is unspecified,
        from anybody; the way's bound address is then the peer's own.

        ``waits`` is told what waits, and the label of its exit; it may close it, and raise.
        ``seconds``: how long it waits from then on.  Raises as :meth:`connect` does,
        ConnectTimeout if nobody came, StreamClosed if it was closed, CommandNotSupported where
        no exit can wait.
        """
        if not request.dest.is_unspecified:
            self._ask_rules(request)
        standing, made = self._reach(request, tried)
        listening: Listening = made
        try:
            waits(listening, standing.exit.label)
            connected = gevent.with_timeout(seconds, listening.accept, timeout_value=None)
            if connected is None:
                raise ConnectTimeout(f"{request.dest}: has not connected within {seconds:g} s")
        except BaseException:
            self._leave(standing)
            raise
        finally:
            listening.close()
        return Way(*connected, standing.exit.label, partial(self._leave, standing))

    def _ask_rules(self, request: Request) -> None:
        decision = self._rules.before_resolving(request.dest, request.user)
        if decision.verdict is Verdict.DENY:
            raise Forbidden(f"{request.dest} is forbidden: {decision.reason}")

    # --- one exit after the other -----------------------------------------------------------

    def _reach(self, request: Request, tried: Callable[[str], None]) -> tuple[_Standing, Any]:
        """An exit, which has one connection more now, and what it made of the request."""
        # A timeout that is no ConnectFailed: an exit takes those for failures of its own parts.
        reached = gevent.with_timeout(
            self._timeout, self._try_exits, request, tried, timeout_value=None
        )
        if reached is None:
            raise ConnectTimeout(f"{request.dest}: not connected within {self._timeout:g} s")
        return reached

    def _try_exits(self, request: Request, tried: Callable[[str], None]) -> tuple[_Standing, Any]:
        deadline = time.monotonic() + self._timeout
        asked = self._unable(request.command)
        if len(asked) == len(self._standings):
            raise CommandNotSupported(f"no exit serves {request.command.name}")
        candidates = self._candidates(asked)
        if not candidates:
            raise LimitReached("every exit has as many connections as it may have")
        tries_left = self._tries
        while True:
            tries_left -= 1
            now = time.monotonic()
            chosen = self._policy.choose(candidates, request.dest.host, now)
            asked.add(chosen)
            tried(chosen.exit.label)
            # An exit that says nothing leaves half of the time to those after it.
            others = tries_left > 0 and len(candidates) > 1
            try:
                return chosen, self._ask(chosen, request, (deadline - now) / 2 if others else None)
            except GsocksError as error:
                if error.fault is Fault.REQUEST or not tries_left:
                    raise
                candidates = self._candidates(asked)
                if not candidates:
                    raise

    def _unable(self, command: Command) -> set[_Standing]:
        """The exits that need not be asked."""
        if command is Command.CONNECT:
            return set()
        return {each for each in self._standings if command not in each.served}

    def _candidates(self, asked: Collection[_Standing]) -> Sequence[_Standing]:
        """The exits that may be asked, in their order."""
        if not asked and not self._full:
            return self._standings
        return [each for each in self._standings if each not in asked and each not in self._full]

    def _ask(self, chosen: _Standing, request: Request, seconds: float | None) -> Any:
        self._enter(chosen)
        began = time.monotonic()
        try:
            made = gevent.with_timeout(
                seconds, chosen.served[request.command], request, timeout_value=None
            )
            if made is None:
                raise ExitDoubtful(f"{chosen.exit.label}: not connected within {seconds:.3g} s")
        except GsocksError as error:
            if error.fault in (Fault.EXIT, Fault.UNCLEAR):  # as slow as can be, however soon
                chosen.connect_time.add(self._timeout, time.monotonic())
            self._leave(chosen)
            raise
        except BaseException:
            self._leave(chosen)
            raise
        now = time.monotonic()
        chosen.connect_time.add(now - began, now)
        return made

    def _enter(self, standing: _Standing) -> None:
        standing.open += 1
        if standing.open == standing.max_connections:
            self._full.add(standing)

    def _leave(self, standing: _Standing) -> None:
        standing.open -= 1
        self._full.discard(standing)


class _Standing(Candidate):
    """An exit, as it stands at present."""

    __slots__ = ("exit", "max_connections", "served")

    def __init__(self, number: int, offer: Offer) -> None:
        super().__init__(number, offer.weight)
        self.exit = offer.exit
        #: how the exit is asked for each command that it serves
        self.served = _served(offer.exit)
        self.max_connections = offer.max_connections


def _served(way: Exit) -> dict[Command, Callable[[Request], Any]]:
    served: dict[Command, Callable[[Request], Any]] = {Command.CONNECT: way.connect}
    if isinstance(way, Associates):
        served[Command.UDP_ASSOCIATE] = way.associate
    if isinstance(way, Binds):
        served[Command.BIND] = way.bind
    return served
