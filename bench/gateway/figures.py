"""What is measured of a rotating proxy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench import processes
from bench.contenders import Contender
from bench.contenders.base import Endpoints
from bench.figures.base import Figure, Goal, Measure
from bench.gateway.clients import SITES, Result, Talk, by_absolute_form, by_connect, by_socks5, load
from bench.gateway.contenders import UNPROBED
from bench.load.route import Place
from bench.processes import Failed
from bench.scale import Scale
from bench.stage import settle

#: exits behind a gateway, and clients at once
EXITS = 200
AT_ONCE = 32

_LOOPBACK = "127.0.0.1"
_PEERS = ("glider", "gost", "mubeng", "proxy-chain", "pproxy")
_GO_PEERS = ("glider", "gost", "mubeng")
#: those that speak SOCKS5 too, and those that keep the exit of a user
_WITH_SOCKS5 = ("gsocks", "glider", "gost", "pproxy")
_WITH_SESSIONS = ("gsocks", "proxy-chain")
#: mubeng answers CONNECT itself, with a certificate of its own
_WITH_CONNECT = ("gsocks", "glider", "gost", "proxy-chain", "pproxy")
_SESSIONS = 10_000


class Running:
    """A gateway at work, with its upstream proxies behind it."""

    def __init__(self, place: Place, pids: list[int], started_in: float) -> None:
        self.place = place
        self.pids = pids
        #: seconds from its start until it listened
        self.started_in = started_in

    def cost(
        self,
        talk: Callable[[bytes, str], Talk],
        requests: int,
        *,
        keep: bool = False,
        users: int = 0,
        exits: int = 0,
    ) -> dict[str, float]:
        """What requests cost and take, once the gateway has done what its start takes.

        CPU time is that of the load alone: what the gateway does while nothing is asked of it, such
        as probes of its exits, is :meth:`idle_share`.  The last connections of the requests before
        end within it, as those of its own end after it.
        """
        settle(self.pids)
        warm_up = max(requests // 10, 2 * AT_ONCE)
        ask = partial(load, self.place, talk, at_once=AT_ONCE, keep=keep, users=users, exits=exits)
        ask(requests=warm_up)
        before = processes.cpu_seconds(self.pids)
        result = ask(requests=requests)
        cpu = processes.cpu_seconds(self.pids) - before
        if result.failures:
            raise Failed(f"failed {result.failures} of {requests} requests")
        return {
            "cpu": cpu / requests * 1e6,
            "rate": requests / result.seconds,
            "p50": result.percentile(0.5) * 1e3,
            "p99": result.percentile(0.99) * 1e3,
        }

    def idle_share(self, seconds: float = 2.0) -> float:
        """The share of a core that it uses on its own, while nothing is asked of it."""
        settle(self.pids)
        before = processes.cpu_seconds(self.pids)
        time.sleep(seconds)
        return (processes.cpu_seconds(self.pids) - before) / seconds


@contextlib.contextmanager
def gateway(
    contender: Contender, exits: int = EXITS, *, dead: float = 0.0, silent: float = 0.0
) -> Iterator[Running]:
    """Start the exits and the gateway, and end them afterwards.

    ``dead`` and ``silent``: the shares of exits that refuse connections, and that accept them and
    say nothing.  Raises Failed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gsocks-bench-")))
        places = stack.enter_context(exits_at_work(folder, exits, dead=dead, silent=silent))
        (inbound,) = processes.free_ports(1)
        place = Place(_LOOPBACK, inbound)
        command = contender.set_up(Endpoints(folder, place, place, place, places))[0]
        log = folder / "log"
        began = time.monotonic()
        with log.open("wb") as file:
            process = processes.start(
                command.argv,
                folder,
                command.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        stack.enter_context(processes.ended_after([process]))
        processes.wait_until_listening(process, inbound, log)
        yield Running(place, [process.pid], time.monotonic() - began)


@contextlib.contextmanager
def exits_at_work(
    folder: Path, exits: int, *, dead: float = 0.0, silent: float = 0.0
) -> Iterator[list[Place]]:
    """So many upstream proxies, of which so large shares are bad as above.  Raises Failed."""
    port, silent_port, dead_port = processes.free_ports(3)
    argv = [sys.executable, "-m", "bench.gateway.upstreams", str(port), str(silent_port)]
    upstreams = processes.start(argv, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with processes.ended_after([upstreams]):
        assert upstreams.stdout is not None
        if not upstreams.stdout.readline():
            raise Failed("the upstream proxies did not start")
        ports = ports_of_exits(exits, port, (dead, dead_port), (silent, silent_port))
        yield [Place(_address(number), each) for number, each in enumerate(ports)]


def ports_of_exits(exits: int, good: int, *bad: tuple[float, int]) -> list[int]:
    """A port for each exit; the bad ones lie evenly between the others."""
    ports = [good] * exits
    for number in range(exits):
        for share, port in bad:
            before, after = int(share * number), int(share * (number + 1))
            if after > before:
                # two kinds may fall on the same exit: the second one takes the next
                ports[number if ports[number] == good else (number + 1) % exits] = port
    return ports


def _address(number: int) -> str:
    """The address of an exit: another one for each, in 127.1.0.0 and above."""
    high, low = divmod(number, 250)
    higher, middle = divmod(high, 250)
    return f"127.{1 + higher}.{middle}.{1 + low}"


# --- the figures ----------------------------------------------------------------------------

_COSTS = (
    Measure("cpu", "CPU us a request"),
    Measure("rate", "requests/s", more_is_better=True),
    Measure("p50", "ms, median", decimals=1),
    Measure("p99", "ms, p99", decimals=1),
)


def _requests(
    talk: Callable[[bytes, str], Talk],
    contender: Contender,
    scale: Scale,
    *,
    keep: bool = False,
    users: int = 0,
    exits: int = 0,
) -> dict[str, float]:
    with gateway(contender) as running:
        return running.cost(talk, scale.connections, keep=keep, users=users, exits=exits)


def _goals(peers: Sequence[str], slower: str = "gost") -> tuple[Goal, ...]:
    """At most 1.5 times the CPU time of each of the peers, and more requests/s than one of them."""
    costs = [Goal("gsocks", "cpu", peer, at_most=1.5) for peer in peers]
    return (*costs, Goal("gsocks", "rate", slower, at_least=1.0))


def _figure(
    name: str,
    title: str,
    about: str,
    sample: Callable[[Contender, Scale], dict[str, float]],
    concerned: Sequence[str],
    goals: tuple[Goal, ...],
    measures: tuple[Measure, ...] = _COSTS,
) -> Figure:
    return Figure(name, title, about, measures, goals, sample, lambda who: who.name in concerned)


CONNECT = _figure(
    "gateway_connect",
    "CONNECT",
    f"{AT_ONCE} clients at once, {EXITS} exits: CONNECT and a small GET, over and over, each on"
    " a new connection and by the next exit.",
    partial(_requests, by_connect),
    _WITH_CONNECT,
    _goals(("glider", "gost")),
)
SOCKS5 = _figure(
    "gateway_socks5",
    "SOCKS5",
    "The same by SOCKS5.",
    partial(_requests, by_socks5),
    _WITH_SOCKS5,
    _goals(("glider", "gost")),
)
ABSOLUTE = _figure(
    "gateway_absolute",
    "Absolute form, kept alive",
    f"{AT_ONCE} clients that keep their connection and send GET http://site/ over and over; another"
    " exit each time.",
    partial(_requests, by_absolute_form, keep=True),
    ("gsocks", *_PEERS),
    _goals(_GO_PEERS),
)
SITES_OF_EXITS = _figure(
    "gateway_sites",
    "Many sites by each exit",
    f"The same with {SITES} sites, another one for an exit each time that it is its turn. The exits"
    " say that they are squids, whose connections carry requests to any site.",
    partial(_requests, by_absolute_form, keep=True, exits=EXITS),
    ("gsocks", *_PEERS),
    _goals(_GO_PEERS),
)
SESSIONS = _figure(
    "gateway_sessions",
    "Sessions",
    f"CONNECT and a small GET with {_SESSIONS:,} session names in turn.",
    partial(_requests, by_connect, users=_SESSIONS),
    _WITH_SESSIONS,
    (Goal("gsocks", "cpu", "proxy-chain", at_most=1.5),),
)


def _bad_exits(contender: Contender, scale: Scale) -> dict[str, float]:
    with gateway(contender, dead=0.2, silent=0.05) as running:
        talk = by_connect if contender.name in _WITH_CONNECT else by_absolute_form
        result: Result = load(running.place, talk, scale.connections, at_once=AT_ONCE)
        return {
            "success": 100 * len(result.times) / result.requests,
            "p50": result.percentile(0.5) * 1e3,
            "p99": result.percentile(0.99) * 1e3,
        }


BAD_EXITS = _figure(
    "gateway_bad_exits",
    "Bad exits",
    f"Of {EXITS} exits 20% refuse connections and 5% accept them and say nothing; from the first"
    " request on, by CONNECT (mubeng: absolute form). A request that is not answered in 15 s has"
    " failed, and is not in the times.",
    _bad_exits,
    ("gsocks", *_PEERS),
    tuple(
        goal
        for peer in _PEERS
        for goal in (
            Goal("gsocks", "success", peer, at_least=1.0),
            Goal("gsocks", "p99", peer, at_most=1.0),
        )
    ),
    (
        Measure("success", "% answered", more_is_better=True, decimals=1),
        Measure("p50", "ms, median", decimals=1),
        Measure("p99", "ms, p99", decimals=1),
    ),
)


def _footprint(contender: Contender, scale: Scale) -> dict[str, float]:
    with gateway(contender) as running:
        empty = processes.memory_bytes(running.pids)
        talk = by_connect if contender.name in _WITH_CONNECT else by_absolute_form
        load(running.place, talk, scale.connections, at_once=AT_ONCE)
        settle(running.pids)
        return {
            "start": running.started_in * 1e3,
            "empty": empty / 2**20,
            "after": processes.memory_bytes(running.pids) / 2**20,
        }


FOOTPRINT = _figure(
    "gateway_footprint",
    "Start and memory",
    f"{EXITS} exits: from the start until it listens, and the memory then and after the requests.",
    _footprint,
    ("gsocks", *_PEERS),
    tuple(Goal("gsocks", "after", peer, at_most=1.0) for peer in _GO_PEERS),
    (
        Measure("start", "ms to listen"),
        Measure("empty", "MiB at start", decimals=1),
        Measure("after", "MiB after the load", decimals=1),
    ),
)

_MANY = (10, 10_000, 100_000)


def _growth(contender: Contender, scale: Scale) -> dict[str, float]:
    found = {}
    for exits in _MANY if scale.name == "full" else _MANY[:2]:
        with gateway(contender, exits) as running:
            found[f"cpu{exits}"] = running.cost(by_connect, scale.connections)["cpu"]
            found[f"idle{exits}"] = running.idle_share()
            found[f"start{exits}"] = running.started_in
    few = found[f"cpu{_MANY[0]}"]
    largest = _MANY[-1] if scale.name == "full" else _MANY[1]
    return {
        "cpu": few,
        "growth": found[f"cpu{largest}"] / few,
        "idle": 100 * found[f"idle{largest}"],
        "start": found[f"start{largest}"],
    }


GROWTH = _figure(
    "gateway_growth",
    "Many exits",
    f"CONNECT and a small GET with {_MANY[-1]:,} exits, divided by the same with {_MANY[0]}"
    f" (quick form: {_MANY[1]:,}). Probes of the exits that run meanwhile count; the share of a"
    " core that they take without requests stands beside it, and one row is gsocks without them.",
    _growth,
    ("gsocks", UNPROBED.name, "glider", "proxy-chain"),
    (
        Goal("gsocks", "growth", at_most=1.1),
        Goal(UNPROBED.name, "growth", at_most=1.1),
        Goal("gsocks", "start", at_most=3.0),
    ),
    (
        Measure("cpu", f"CPU us a request with {_MANY[0]} exits"),
        Measure("growth", "x with many", decimals=2, compared=False),
        Measure("idle", "% of a core without requests, with many", decimals=1, compared=False),
        Measure("start", "s to listen with many", decimals=1, compared=False),
    ),
)

GATEWAY_FIGURES = (
    CONNECT,
    SOCKS5,
    ABSOLUTE,
    SITES_OF_EXITS,
    SESSIONS,
    BAD_EXITS,
    FOOTPRINT,
    GROWTH,
)
