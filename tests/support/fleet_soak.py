"""A soak of gateways that share a store, while gateways and the store fail in turn.

    python -m tests.support.fleet_soak --seconds 300

Three gateways of two workers each run behind a HAProxy with PROXY v2 and share a Redis, each by a
path of its own.  This process plays their exits, the target, and 2,000 sessions, each of whose
requests comes to another gateway than the one before.  In turn, exits go away and return; a gateway
is killed, or its worker, or it is ended and started again; Redis is killed and starts empty,
is frozen, is emptied; the path of a gateway to Redis is parted, or falls silent.  Whatever fails,

- a client gets back exactly its own bytes, all of them, or a reset: nothing is lost or mixed up;
- a request is served, unless its gateway was killed under it;
- a session keeps its exit at whichever gateway it comes, until that exit was away, or was held for
  away still by a gateway that had waited for it;
- a user has no more connections open than the limit, but for a twentieth, over all gateways; while
  they can't agree, as many as the limit at each process;
- 2 s after a failure is over, the gateways are one again: what one is told all know.

A connection through HAProxy that its exit resets may look as one that has ended: HAProxy closes
what the other side has reset.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.socket import socket

from gsocks.address import Address
from tests.support.engine import connect, eventually, read_exactly, serving
from tests.support.fleet_programs import (
    GatewayProgram,
    PathToStore,
    balancer,
    running,
    write_users,
)
from tests.support.proxies import WELL
from tests.support.redis_server import RedisServer
from tests.support.soak import AWAY, Refused, Served, Soak, tell_and_echo

GATEWAYS = 3
WORKERS = 2

#: seconds in which the gateways have to be one again, and news has to be known to all
RECOVERY = 2.0

#: users of the sessions, and one who wants more connections than a user may have
USERS = 50
GREEDY = "greedy"

#: seconds that a connection of that user lasts at most, and those after an outage until those
#: that were let in without the store are over
_HELD = 3.0

#: seconds after an exit's return in which a gateway may hold it for away: one that has just found
#: so (``timeouts.exit``), and does not ask it again for a time (``health.longest``), nor the others
_IN_DOUBT = 3.0 + 2.0 + 0.5

_SECTION = """
  users_file: users
  timeouts: {{connect: 3s, drain: 5s}}
  health: {{base: 500ms, longest: 2s}}
  limits: {{per_client: 100000, per_user: {limit}}}
  exits:
"""

_ALONE = r"goes on alone"
_AGAIN = r"answers again"
_RECORDS = "gsocks:1:r:local:session:*"


class FleetSoak(Soak):
    """One soak, and what it has found.

    ``sessions`` make ``rate`` requests a second in all; each failure lasts for ``lasting`` seconds,
    and there are ``calm`` seconds behind each.
    """

    user_name = "{}"

    def __init__(
        self,
        *,
        sessions: int,
        exits: int,
        seed: int,
        rate: float = 50.0,
        limit: int = 20,
        lasting: float = 4.0,
        calm: float = 2.0,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(clients=sessions, exits=exits, seed=seed, workers=WORKERS)
        self.pace = rate / sessions
        for each in self._exits:
            each.knows_names = False  # as the gateways' connect probes ask for
        self._limit = limit
        self._lasting = lasting
        self._calm = calm
        self._tell = tell
        self._gateways: list[GatewayProgram] = []
        self._paths: list[PathToStore] = []
        self._store: RedisServer
        self._over = Event()
        #: the failures, and when each began
        self._history: list[tuple[str, float]] = []
        #: connections of the greedy user that are open
        self._held = 0
        #: since when all of them were let in by gateways that agree; None: they do not
        self._agreeing: float | None = 0.0
        #: seconds for which this process did not run at most
        self.own_lag = 0.0
        #: seconds until each request was connected
        self.waits: list[float] = []
        #: of each failure of the store, the seconds until all gateways were one again
        self.recoveries: dict[str, list[float]] = {}

    def run_faults(self, faults: Sequence[str] | None = None, seconds: float = 0.0) -> None:
        """Each of ``faults`` once, by default all; and again until ``seconds`` are over."""
        with ExitStack() as stack:
            for each in self._exits:
                stack.enter_context(each)
            self._target = stack.enter_context(serving(tell_and_echo))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(self._fleet(folder))
            began = time.monotonic()
            self._history = [("calm", began)]
            crowd = [gevent.spawn(self._be_a_client, n) for n in range(self._clients)]
            watching = gevent.spawn(self._watch_own_lag)
            greedy = [gevent.spawn(self._be_greedy) for _ in range(2 * self._limit)]
            try:
                gevent.sleep(self._calm)
                while True:
                    names = list(faults or FAULTS)
                    if seconds:
                        self._random.shuffle(names)
                    for name in names:
                        self._fail(name, began)
                        if seconds and time.monotonic() - began > seconds:
                            break
                    if time.monotonic() - began > seconds:
                        break
            finally:
                self._going = False
                self._over.set()
            gevent.joinall(crowd, raise_error=True)
            gevent.joinall(greedy, raise_error=True)
            watching.join()
            self._check_members()

    @contextmanager
    def _fleet(self, folder: Path) -> Iterator[None]:
        write_users(folder, [*(f"u{n}" for n in range(USERS)), GREEDY])
        local = _SECTION.format(limit=self._limit)
        local += "".join(f"    - '{each.url}'\n" for each in self._exits)
        with ExitStack() as stack:
            self._store = RedisServer(folder / "redis")
            stack.callback(self._store.close)
            to = Address("127.0.0.1", self._store.port)
            self._paths = [PathToStore(to) for _ in range(GATEWAYS)]
            for path in self._paths:
                stack.enter_context(path)
            self._gateways = [
                GatewayProgram(folder, f"gateway{number}", f"redis://{path.bound}", local)
                for number, path in enumerate(self._paths, 1)
            ]
            stack.enter_context(running(self._gateways))
            self._inbound = stack.enter_context(balancer(folder, self._gateways))
            yield

    # --- clients ------------------------------------------------------------------------------

    def _be_a_client(self, number: int) -> None:
        self._rest(self._random.uniform(0, 1 / self.pace))  # not all at the same moment
        super()._be_a_client(number)

    def _rest(self, seconds: float) -> None:
        self._over.wait(seconds)

    def _session_of(self, number: int) -> str:
        return f"u{number % USERS}-session-s{number}"

    def _check_session(self, session: str, served: Sequence[Served]) -> None:
        moved = float("-inf")
        for before, after in pairwise(served):
            if before.exit == after.exit:
                continue
            self.counts["moves"] += 1
            if self._was_away(before.exit, before.began, after.known):
                moved = after.known
            # two requests within that time may meet gateways that have not heard of each other
            elif after.began - moved > RECOVERY:
                self.violations.append(
                    f"{session} left exit {before.exit} for {after.exit}, and it was not away"
                    f" ({self._at(before.began)} to {self._at(after.known)}); it was at "
                    + ", ".join(f"{each.exit} {self._at(each.began)}" for each in served)
                )

    def _at(self, moment: float) -> str:
        """What failed at a moment, and when that was."""
        failed = [name for name, began in self._history if began <= moment]
        return f"{moment - self._history[0][1]:.1f} s, {failed[-1] if failed else 'calm'}"

    def _connect(self, session: str) -> socket:
        began = time.monotonic()
        try:
            sock = super()._connect(session)
        except Refused as refused:
            now = time.monotonic()
            if session != GREEDY and not self._worker_died(began, now):
                self.counts["refused_wrongly"] += 1
                self.violations.append(
                    f"{session} was refused by {refused} after {now - began:.2f} s"
                    f" ({self._at(now)}); {self._logged(session)}"
                )
            raise
        self.waits.append(time.monotonic() - began)
        return sock

    def _logged(self, session: str) -> str:
        """What the gateways have said last of a session's connections that failed."""
        user, _, name = session.partition("-session-")
        words = (f"user={user} ", f"session={name} ")
        found = [
            line
            for each in self._gateways
            for line in each.lines[-1000:]
            if all(word in line for word in words) and "outcome=ok" not in line
        ]
        return " / ".join(found[-2:])

    def _may_end_early(self, exit_: int, since: float, until: float) -> bool:
        return super()._may_end_early(exit_, since, until) or self._was_away(exit_, since, until)

    def _be_greedy(self) -> None:
        """Hold connections of one user, of whom there are twice as many as the limit."""
        chance = Random(self._random.random())
        while self._going:
            self._rest(chance.uniform(0.3, 1.0))
            try:
                sock = self._connect(GREEDY)
            except Refused:
                self.counts["greedy_refused"] += 1
                continue
            except (OSError, EOFError):
                continue
            self._held += 1
            self._note_held()
            try:
                sock.settimeout(chance.uniform(0.3, 1.0) * _HELD)
                read_exactly(sock, 1)
                read_exactly(sock, 1)  # which does not come
            except (OSError, EOFError):
                pass  # it is time, or it was cut
            finally:
                self._held -= 1
                sock.close()

    def _watch_own_lag(self) -> None:
        """How late this process itself is, whose exits and clients are as late then."""
        while self._going:
            began = time.monotonic()
            self._over.wait(0.05)
            self.own_lag = max(self.own_lag, time.monotonic() - began - 0.05)

    def _note_held(self) -> None:
        self.counts["greedy_served"] += 1
        agreed = self._agreeing is not None and time.monotonic() - self._agreeing > 2 * _HELD
        most = 1.05 * self._limit if agreed else self._limit * GATEWAYS * WORKERS
        what = "most_held" if agreed else "most_held_meanwhile"
        self.counts[what] = max(self.counts[what], self._held)
        if self._held > most:
            self.violations.append(
                f"a user has {self._held} connections open, of {self._limit}"
                f" ({self._at(time.monotonic())})"
            )

    # --- failures -----------------------------------------------------------------------------

    def _fail(self, name: str, began: float) -> None:
        """One failure, and what it was like."""
        wrong = len(self.violations)
        self._history.append((name, time.monotonic()))
        what = FAULTS[name](self)
        gevent.sleep(self._calm)
        at = time.monotonic() - began
        told = f"{self.counts['requests']:,} requests, {self.counts['whole']:,} whole"
        more = len(self.violations) - wrong
        self._tell(f"[{at:4.0f} s] {name}: {what}; {told}; wrong: {more}")
        for violation in self.violations[wrong : wrong + 5]:
            self._tell(f"         WRONG: {violation}")

    def _exits_away(self) -> str:
        """One of twenty exits, in each way to be away."""
        numbers = self._random.sample(range(len(self._exits)), max(2, len(self._exits) // 20))
        began = time.monotonic()
        for number in numbers:
            mood = self._random.choice([None, *AWAY])
            if mood is None:
                self._exits[number].go()
            else:
                self._exits[number].mood = mood
        gevent.sleep(self._lasting)
        for number in numbers:
            self._exits[number].mood = WELL
            self._exits[number].come()
            self._away[number].append((began, time.monotonic() + _IN_DOUBT))
        return f"{len(numbers)} of {len(self._exits)}"

    def _gateway_killed(self) -> str:
        gateway = self._random.choice(self._gateways)
        with self._killing():
            gateway.kill()
        gevent.sleep(self._lasting)
        gateway.start()
        gateway.wait_until_ready()
        return gateway.name

    def _worker_killed(self) -> str:
        gateway = self._random.choice(self._gateways)
        program = gateway.program
        assert program is not None
        pid = program.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        heard = gateway.count(r"local: listening on ")
        with self._killing():
            os.kill(int(self._random.choice(children)), signal.SIGKILL)
        eventually(lambda: gateway.count(r"local: listening on ") > heard)
        return gateway.name

    @contextmanager
    def _killing(self) -> Iterator[None]:
        self._kills.append(time.monotonic())
        yield
        self._kills.append(time.monotonic())

    def _gateway_replaced(self) -> str:
        """As a new version is brought in: no request may be lost."""
        gateway = self._random.choice(self._gateways)
        gateway.signal(signal.SIGTERM)
        status = gateway.wait_until_ended()
        if status:
            self.violations.append(f"{gateway.name} ended with status {status}")
        gateway.start()
        gateway.wait_until_ready()
        return gateway.name

    def _store_killed(self) -> str:
        return self._without_store("store killed", self._store.kill, self._store.start)

    def _store_frozen(self) -> str:
        return self._without_store("store frozen", self._store.freeze, self._store.thaw)

    def _parted(self) -> str:
        path = self._random.choice(self._paths)
        return self._without_store("path parted", path.part, path.mend)

    def _silent(self) -> str:
        path = self._random.choice(self._paths)
        return self._without_store("path silent", path.fall_silent, path.cut)

    def _without_store(
        self, name: str, begin: Callable[[], object], end: Callable[[], object]
    ) -> str:
        alone = [each.count(_ALONE) for each in self._gateways]
        self._agreeing = None
        begin()
        # a store that says nothing is noticed after 2 s
        eventually(lambda: [each.count(_ALONE) for each in self._gateways] != alone)
        gevent.sleep(self._lasting)
        end()
        began = time.monotonic()
        eventually(lambda: all(each.count(_ALONE) == each.count(_AGAIN) for each in self._gateways))
        return self._recovered(name, began)

    def _store_emptied(self) -> str:
        client = self._store.client()
        before = len(client.keys(_RECORDS))
        client.flushall()
        began = time.monotonic()
        eventually(lambda: len(client.keys(_RECORDS)) >= before)
        return f"{before} records; " + self._recovered("store emptied", began)

    def _recovered(self, name: str, began: float) -> str:
        """Until the gateways are one again: a session that one moves has its exit at all."""
        first, *others = self._random.sample(self._gateways, GATEWAYS)
        session = f"u0-session-{self._random.getrandbits(64):x}"
        before = self._exit_at(first, session)
        first.ask("POST", "/v1/sessions/rotate", _named(session))
        eventually(lambda: self._exit_at(first, session) not in (before, None))
        exit_ = self._exit_at(first, session)
        # each so often that both of its workers are asked, and of the user's limit no more at a
        # time than leaves some for its other sessions
        asked = 8 * [first, *others]
        at_once = self._limit // 2

        def is_known() -> bool:
            found = Pool(at_once).imap_unordered(lambda each: self._exit_at(each, session), asked)
            return all(each == exit_ for each in found)

        eventually(is_known)
        took = time.monotonic() - began
        self.recoveries.setdefault(name, []).append(took)
        self._agreeing = time.monotonic()
        return f"one again in {took:.2f} s"

    def _exit_at(self, gateway: GatewayProgram, session: str) -> int | None:
        """The exit that a gateway gives a session, without the balancer; None: it refuses."""
        with connect(Address("127.0.0.1", gateway.port)) as sock:
            sock.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n")
            try:
                self._greet(sock, session)
                return read_exactly(sock, 1)[0] - 1
            except (Refused, OSError, EOFError):
                self.counts["probes_refused"] += 1
                return None

    def _check_members(self) -> None:
        """All processes know of all."""
        wanted = GATEWAYS * WORKERS

        def all_known() -> bool:
            found = [each.ask("GET", "/v1/fleet") for each in self._gateways]
            return all(
                each is not None
                and len(each["members"]) == wanted
                and each["store"]["state"] == "ok"
                for each in found
            )

        eventually(all_known)

    def told(self) -> str:
        """The figures, in a few lines."""
        figures = ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()))
        took = "; ".join(
            f"{name} {max(each):.2f} s ({len(each)} times)"
            for name, each in sorted(self.recoveries.items())
        )
        waits = sorted(self.waits)
        middle, late = (1000 * waits[int(len(waits) * share)] for share in (0.5, 0.99))
        figures += f"\nms until connected: median {middle:.0f}, p99 {late:.0f}, most"
        figures += (
            f" {1000 * waits[-1]:.0f}; this process was late by {1000 * self.own_lag:.0f} at most"
        )
        return f"{figures}\nlongest until all were one again: {took or 'not tried'}"


def _named(session: str) -> dict[str, str]:
    user, _, name = session.partition("-session-")
    return {"user": user, "session": name}


#: what fails, in the order of the short soak
FAULTS: dict[str, Callable[[FleetSoak], str]] = {
    "exits away": FleetSoak._exits_away,
    "store emptied": FleetSoak._store_emptied,
    "gateway killed": FleetSoak._gateway_killed,
    "store killed": FleetSoak._store_killed,
    "path parted": FleetSoak._parted,
    "gateway replaced": FleetSoak._gateway_replaced,
    "store frozen": FleetSoak._store_frozen,
    "path silent": FleetSoak._silent,
    "worker killed": FleetSoak._worker_killed,
}


def main() -> int:
    """Print a line for each failure, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--exits", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second in all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), help="only these")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    soak = FleetSoak(
        sessions=options.sessions,
        exits=options.exits,
        rate=options.rate,
        seed=options.seed,
        tell=lambda line: print(line, flush=True),
    )
    soak.run_faults(options.faults, options.seconds)
    for violation in soak.violations[-10:]:  # sessions are looked at when all is over
        print(f"WRONG: {violation}")
    print(soak.told())
    slow = [each for took in soak.recoveries.values() for each in took if each > RECOVERY]
    if slow:
        print(f"MISSED: the gateways are one again within {RECOVERY:g} s ({max(slow):.2f} s)")
    print(f"load of the machine: {os.getloadavg()[1]:.1f}; wrong: {len(soak.violations)}")
    return bool(soak.violations or slow)


if __name__ == "__main__":
    sys.exit(main())
