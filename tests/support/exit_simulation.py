"""A world of exits, destinations and clients, without I/O and with a clock of its own.

The exit group, its failover, sessions and evidence are the real ones.  Exits answer at once what
their kind would; the clock advances by a little between two requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from random import Random
from typing import Any, NamedTuple

import pytest

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits.base import Connected
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.connected import Outbound
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.rotation.policy import make_policy
from gsocks.rotation.roster import Member
from gsocks.stream import Blocking


class Kind(Enum):
    """How an exit behaves; those above the line are healthy."""

    PRECISE = "says what the destination's failure is"
    VAGUE = "has one word for every failure of a destination"
    YES_SAYER = "says yes before it connects, and serves what it reaches"
    # ---
    GONE = "can't be reached, or refuses the login"
    REFUSES = "refuses every destination in precise words: its account has run out"
    DEAD_UPLINK = "has one word for every destination: its network is gone"
    LIAR = "says yes to every destination, and no byte comes back"

    @property
    def is_healthy(self) -> bool:
        return self in HEALTHY


HEALTHY = (Kind.PRECISE, Kind.VAGUE, Kind.YES_SAYER)
SICK = (Kind.GONE, Kind.REFUSES, Kind.DEAD_UPLINK, Kind.LIAR)

#: what they say where they do not connect; None: "connected"
FAILURES = {
    Kind.PRECISE: errors.ConnectionRefused("refused"),
    Kind.VAGUE: errors.ExitDoubtful("503"),
    Kind.GONE: errors.ExitFailed("gone"),
    Kind.REFUSES: errors.Forbidden("403"),
    Kind.DEAD_UPLINK: errors.ExitDoubtful("503"),
}

#: the hostile client
HOSTILE = "203.0.113.66"

#: destinations that no exit reaches, by the beginning of their names
DEAD = "dead"
#: destinations of the hostile client, which serve all exits but one
TRAP = "trap"


class World:
    """``kinds``: of the exits; ``target``: the exit that the hostile client would like to eject."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        seed: int,
        *,
        policy: str = "round_robin",
        target: int = 0,
        weights: Mapping[int, float] = {},
    ) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.exits = [SimulatedExit(self, number, kind) for number, kind in enumerate(kinds)]
        self.target = self.exits[target]
        self.group = ExitGroup(
            [
                Offer(exit_, name=f"e{exit_.number}", weight=weights.get(exit_.number, 1.0))
                for exit_ in self.exits
            ],
            ALLOW_ALL,
            policy=make_policy(policy, Random(seed)),
            random=Random(seed),
        )
        #: what must not be
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self._honest: set[str] = set()
        #: exits that have failed the present request
        self.failed: set[SimulatedExit] = set()

    @contextmanager
    def clock(self) -> Iterator[None]:
        """The modules that read the clock read this world's."""
        with pytest.MonkeyPatch.context() as patch:
            for module in ("group", "failover", "connected"):
                patch.setattr(f"gsocks.rotation.{module}.time", self)
            patch.setattr("gsocks.rotation.failover.RETRY_DELAY", 0.0)
            yield

    def monotonic(self) -> float:
        return self.now

    # --- requests ---------------------------------------------------------------------------

    def ask(self, host: str, client: str, session: str | None = None) -> Answer:
        """A request; its connection is closed by :meth:`finish`."""
        # of dead destinations no exit can be told from another one
        counts = client != HOSTILE and not host.startswith(DEAD)
        if client != HOSTILE:
            self._honest.add(client)
        selector = ANY if session is None else ExitSelector(session=session)
        dest = Address(host, 443)
        request = Request(Command.CONNECT, dest, selector=selector, client=f"{client}:1")
        self.failed.clear()
        try:
            way = self.group.connect(request, lambda _: None)
        except errors.GsocksError as error:
            way = None
            word = error.word
        for exit_ in self.failed:
            exit_.done += counts  # once, however often it was tried
        if way is None:
            return Answer(host, None, word, counts)
        exit_ = self.exits[int(way.name[1:])]
        outcome = "served" if exit_.reaches(host) else "silent"
        return Answer(host, way, outcome, counts)

    def finish(self, answer: Answer) -> None:
        """The bytes have come back, or have not."""
        if answer.way is not None:
            down = 1 if answer.outcome == "served" else 0
            self.exits[int(answer.way.name[1:])].done += answer.counts
            answer.way.release(1, down)
        alive = not answer.host.startswith(DEAD)
        self.outcomes[f"{'alive' if alive else 'dead'} {answer.outcome}"] += 1
        self._look()

    def burst(self, wanted: Sequence[tuple[str, str, str | None]]) -> None:
        """Requests of which none is closed before the last one was sent."""
        for answer in [self.ask(*each) for each in wanted]:
            self.finish(answer)

    def _look(self) -> None:
        for exit_, member in zip(self.exits, self.group.roster, strict=True):
            health = member.health
            ejected = health.is_ejected(self.now) or self._is_ejected_for_all(member)
            if exit_.kind.is_healthy:
                if ejected and health.ejected_until - self.now > 30.0:
                    seconds = health.ejected_until - self.now
                    self.violations.append(f"{exit_!r} is ejected for {seconds:.0f} s")
            elif ejected:
                exit_.was_ejected = True
            elif not exit_.was_ejected and exit_.done >= MOST:
                self.violations.append(f"{exit_!r} is not ejected after {exit_.done} requests")
                exit_.was_ejected = True

    def _is_ejected_for_all(self, member: Member) -> bool:
        """Whether an exit is ejected for the only client that is not hostile."""
        if len(self._honest) != 1:
            return False
        (client,) = self._honest
        return self.group.roster.domains.is_ejected(member.name, f"client {client}", self.now)


#: requests after which a sick exit is ejected
MOST = 20


class Answer(NamedTuple):
    host: str
    way: Outbound | None
    outcome: str
    #: whether it says something of the exit
    counts: bool


class SimulatedExit:
    def __init__(self, world: World, number: int, kind: Kind) -> None:
        self.label = f"exit{number}"
        self.number = number
        self.kind = kind
        #: requests with a result since it is of this kind: of clients that are not hostile, for
        #: destinations that healthy exits reach
        self.done = 0
        self.was_ejected = False
        self._world = world

    def __repr__(self) -> str:
        return f"{self.label} ({self.kind.name})"

    def become(self, kind: Kind) -> None:
        self.kind, self.done, self.was_ejected = kind, 0, False

    def close(self) -> None: ...

    def reaches(self, host: str) -> bool:
        if not self.kind.is_healthy or host.startswith(DEAD):
            return False
        return not (host.startswith(TRAP) and self is self._world.target)

    def connect(self, request: Request) -> Connected:
        failure = FAILURES.get(self.kind)
        if failure is None or self.reaches(request.dest.host):
            return Connected(_Nothing(), UNSPECIFIED)
        self._world.failed.add(self)
        raise failure


class _Nothing(Blocking):
    """A stream through which the simulation sends nothing."""

    def __init__(self) -> None:
        super().__init__()

    def abort(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)
