"""A soak of the rotating proxy: exits die and return at random while clients go on.

    python -m tests.support.soak --seconds 1800

Half the time it is one process, and half the time two workers, of which one is killed now and then.
Meanwhile other peers attack it (tests/attack/harass.py), and it is told to reload.

gsocks runs as a program, in front of proxies that this process plays: each is known to the target
by its source address, which tells every client who has served it.  Whatever the weather,

- a client gets back exactly its own bytes, all of them, or a reset: nothing is lost or mixed up;
- a session keeps its exit until that one was away, or its worker was killed;
- while all is well, exits are used by their shares, by sessions and without;
- one turn of the event loop in a thousand takes longer than 50 ms at most;
- when it is over, the program holds no descriptor more than before, and hardly more memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket as std_socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import gevent
import gevent.subprocess
from gevent.pool import Pool
from gevent.socket import socket

from gsocks.address import Address
from gsocks.messages import plural
from gsocks.service.supervisor import MIN_UPTIME
from tests.support.engine import connect, read_exactly, read_to_end, send_and_end, serving
from tests.support.program import ROOT, Program
from tests.support.proxies import WELL, Mood, Moody
from tests.support.waiting import TOO_LONG, eventually

#: how an exit may be away, beside being gone
AWAY = [
    Mood("garbage", "greeting"),
    Mood("close", "login"),
    Mood("reset", "reply"),
    Mood("hang", "accept"),
]

_CONFIG = """
workers: {workers}
log: {{access: {access}}}
admin: {{listen: 127.0.0.1:0}}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  rotate: random
  timeouts: {{connect: 3s}}
  health: {{base: 500ms, longest: 2s}}
  limits: {{per_client: 100000}}
  exits:
"""

#: seconds after which all exits are back that are well; the config's longest, and a little
_ALL_BACK = 2.5

#: times at most that the program is left alone, so that what it holds can be measured
_SPELLS = 10

#: seconds that one turn of a thousand may take
_LAG = 0.05

#: seconds around the death of a worker in which its connections are reset
_DYING = 1.0

#: bytes that a client sends at most
_MOST = 50_000


class Served(NamedTuple):
    """One connection of a client."""

    began: float
    #: when the exit was known
    known: float
    exit: int


class Refused(Exception):
    """No exit connected the request; its argument is the reply, or none."""


class Soak:
    """One soak, and what it has found.

    ``hostile``: with attacks and reloads; ``workers``: if there are several, they are killed.
    """

    #: requests of each client in a second, on average
    pace = 2.0
    #: the user's name of a session
    user_name = "session-{}"

    def __init__(
        self, *, clients: int, exits: int, seed: int, hostile: bool = False, workers: int = 1
    ) -> None:
        self._hostile = hostile
        self._workers = workers
        self._clients = clients
        self._random = Random(seed)
        self._exits = [Moody(source=f"127.0.1.{number + 1}") for number in range(exits)]
        #: by exit: from when until when it was away
        self._away: dict[int, list[tuple[float, float]]] = defaultdict(list)
        #: those that are away, or about to be
        self._leaving: set[int] = set()
        self._weights = [1 + number % 2 for number in range(exits)]
        self._inbound = self._target = Address("", 0)
        self._going = True
        self._program: Program
        self._admin = Address("", 0)
        self._token = ""
        #: how many sockets the program has when nothing is open
        self._listening = 0
        #: when workers were killed
        self._kills: list[float] = []
        #: what the log said about turns that were too long
        self.blocked: list[str] = []
        #: of each spell, the seconds that one turn of a thousand exceeded
        self.lags: list[float] = []
        #: what must not be
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        #: resident bytes of the program, when nothing was open
        self.memory: list[int] = []
        self.descriptors: list[int] = []

    def run(self, seconds: float) -> None:
        """``seconds`` of bad weather between two of good."""
        with ExitStack() as stack:
            for each in self._exits:
                stack.enter_context(each)
            self._target = stack.enter_context(serving(tell_and_echo))
            self._program = stack.enter_context(self._running_program())
            self._check_shares()
            gevent.sleep(_ALL_BACK)  # also until the last of these connections are closed
            self._listening = self._sockets()
            spells = max(2, min(_SPELLS, int(seconds / 30)))
            for _ in range(spells):
                self._weather(seconds / spells, changing=True)
                self._note_state()
            gevent.sleep(_ALL_BACK)
            refused = self.counts["refused"]
            self._check_shares()
            if self.counts["refused"] > refused:
                self.violations.append("requests are refused though all exits are well")
            self._note_state()
            pattern = r"event loop blocked .*"
            found = (re.search(pattern, line) for line in self._program.lines)
            self.blocked = [each[0] for each in found if each]
        self._check_state()

    @contextmanager
    def _running_program(self) -> Iterator[Program]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "soak.yaml"
            exits = zip(self._exits, self._weights, strict=True)
            lines = [f"    - {{url: '{each.url}', weight: {weight}}}\n" for each, weight in exits]
            # a line for each of an attacker's requests would be more than this process can read
            access = "false" if self._hostile else "true"
            config = _CONFIG.format(workers=self._workers, access=access)
            path.write_text(config + "".join(lines))
            with Program("-c", path) as program:
                program.wait_for(r"local: listening on ", self._workers)
                self._inbound = Address("127.0.0.1", program.port())
                (admin, *_) = program.wait_for(r"admin: listening on http://[\d.]+:(\d+)")
                self._admin = Address("127.0.0.1", int(admin[1]))
                self._token = (Path(folder) / "admin.token").read_text().strip()
                yield program

    # --- the weather ------------------------------------------------------------------------

    def _weather(self, seconds: float, *, changing: bool = False) -> None:
        """Clients for so long, under exits that come and go if it is ``changing``."""
        self._going = True
        clients = [gevent.spawn(self._be_a_client, number) for number in range(self._clients)]
        changes = [gevent.spawn(self._change)] if changing else []
        if self._hostile:
            changes += [gevent.spawn(partial(self._attack, seconds)), gevent.spawn(self._reload)]
        if self._workers > 1:
            changes.append(gevent.spawn(self._kill_workers))
        gevent.sleep(seconds)
        self._going = False
        gevent.joinall(changes, raise_error=True)
        gevent.joinall(clients, raise_error=True)
        self._note_lag()

    def _attack(self, seconds: float) -> None:
        """Have a process of its own attack the program for so long."""
        arguments = [
            self._inbound.port,
            self._admin.port,
            int(seconds),
            self._random.getrandbits(32),
        ]
        command = [sys.executable, "-m", "tests.attack.harass", *map(str, arguments)]
        told = gevent.subprocess.check_output(command, cwd=ROOT, timeout=seconds + TOO_LONG)
        for attack, count in json.loads(told).items():
            self.counts[f"attack_{attack}"] += count

    def _reload(self) -> None:
        while self._going:
            gevent.sleep(self._random.uniform(1, 5))
            self._program.signal(signal.SIGHUP)
            self.counts["reloads"] += 1

    def _kill_workers(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer sends it."""
        while self._going:
            # a worker that dies younger is started again with a delay
            gevent.sleep(MIN_UPTIME + self._random.uniform(1, 5))
            self._kills.append(time.monotonic())
            os.kill(self._random.choice(_children(self._program.process.pid)), signal.SIGKILL)
            self.counts["kills"] += 1

    def _worker_died(self, since: float, until: float) -> bool:
        return any(since - _DYING <= at <= until for at in self._kills)

    def _may_end_early(self, exit_: int, since: float, until: float) -> bool:
        """Of a process that is killed the kernel ends the connections as if they were complete."""
        return self._worker_died(since, until)

    def _change(self) -> None:
        """Let exits go away and come back, at most half of them at a time."""
        absences = Pool(len(self._exits) // 2)
        while self._going:
            gevent.sleep(self._random.uniform(0, 0.3))
            here = [number for number in range(len(self._exits)) if number not in self._leaving]
            number = self._random.choice(here)
            self._leaving.add(number)
            absences.spawn(self._be_away, number)  # waits while there are too many
        absences.join()

    def _be_away(self, number: int) -> None:
        exit_ = self._exits[number]
        began = time.monotonic()
        mood = self._random.choice([None, None, *AWAY])
        if mood is None:
            exit_.go()
        else:
            exit_.mood = mood
        self.counts["absences"] += 1
        gevent.sleep(self._random.uniform(0.1, 1.5))
        exit_.mood = WELL
        exit_.come()
        self._away[number].append((began, time.monotonic()))
        self._leaving.discard(number)

    def _was_away(self, number: int, since: float, until: float) -> bool:
        return (
            any(began <= until and ended >= since for began, ended in self._away[number])
            or self._exits[number].is_away
        )

    # --- clients ----------------------------------------------------------------------------

    def _be_a_client(self, number: int) -> None:
        """Connect again and again."""
        session = self._session_of(number)
        chance = Random(self._random.random())
        served: list[Served] = []
        while self._going:
            self.counts["requests"] += 1
            try:
                served.append(self._converse(session, chance))
            except Refused:
                self.counts["refused"] += 1
            self._rest(chance.expovariate(self.pace))
        if session:
            self._check_session(session, served)

    def _rest(self, seconds: float) -> None:
        """Between two requests of a client."""
        gevent.sleep(seconds)

    def _session_of(self, number: int) -> str:
        """Three of four clients have one."""
        return f"client{number}" if number % 4 else ""

    def _check_session(self, session: str, served: Sequence[Served]) -> None:
        for before, after in pairwise(served):
            if before.exit != after.exit:
                self.counts["moves"] += 1
                # workers learn at different times that an exit is away
                away = self._was_away(before.exit, before.began, after.known)
                if not away and self._workers == 1:
                    self.violations.append(f"{session} left exit {before.exit}, which was not away")

    def _converse(self, session: str, chance: Random) -> Served:
        """One connection: bytes of its own, sent and got back while others do the same."""
        began = time.monotonic()
        try:
            sock = self._connect(session)
        except (OSError, EOFError) as error:
            self.counts["cut"] += 1
            if not self._worker_died(began, time.monotonic()):
                self.violations.append(f"not answered: {error}")
            raise Refused from None
        try:
            exit_ = read_exactly(sock, 1)[0] - 1
            served = Served(began, time.monotonic(), exit_)
        except (OSError, EOFError):
            # it was connected, and its exit went away before a byte had come
            sock.close()
            self.counts["cut"] += 1
            raise Refused from None
        data = chance.randbytes(chance.randrange(1, _MOST))
        sender = gevent.spawn(send_and_end, sock, data)
        got = 0
        try:
            while part := sock.recv(65536):
                if part != data[got : got + len(part)]:
                    self.violations.append(f"byte {got} or one behind it is not the client's own")
                got += len(part)
            # the kernel reports a reset once, to the first call
            if got < len(data) and (failure := sender.get()) is not None:
                raise failure
        except OSError:
            self.counts["cut"] += 1
            now = time.monotonic()
            if not self._was_away(exit_, began, now) and not self._worker_died(began, now):
                self.violations.append(f"reset by exit {exit_}, which was not away")
        else:
            self.counts["whole"] += 1
            now = time.monotonic()
            if got != len(data) and self._may_end_early(exit_, began, now):
                self.counts["ended_by_a_kill"] += 1
            elif got != len(data):
                self.violations.append(f"{len(data) - got} bytes lost, and told as an end")
        finally:
            sender.kill()
            sock.close()
        self.counts["bytes"] += 2 * got
        return served

    def _connect(self, session: str) -> socket:
        sock = connect(self._inbound)
        try:
            self._greet(sock, session)
        except BaseException:
            sock.close()
            raise
        return sock

    def _greet(self, sock: socket, session: str) -> None:
        """Until the request is connected.  Raises Refused, OSError, EOFError."""
        if session:
            name = self.user_name.format(session).encode()
            sock.sendall(b"\x05\x01\x02" + b"\x01" + bytes((len(name),)) + name + b"\x01x")
            read_exactly(sock, 4)
        else:
            sock.sendall(b"\x05\x01\x00")
            read_exactly(sock, 2)
        sock.sendall(b"\x05\x01\x00" + self._target.encode())
        if reply := read_exactly(sock, 4)[1]:
            raise Refused(reply)
        read_exactly(sock, 6)

    # --- what is checked when it is calm ----------------------------------------------------

    def _check_shares(self) -> None:
        """Without sessions chance decides; sessions go by the exits' weights."""
        size = 40 * len(self._exits)
        everybody = [1.0] * len(self._exits)
        self._check_spread("requests", self._exits_of([""] * size), everybody)
        names = [f"share{self._random.getrandbits(64):x}" for _ in range(size)]
        self._check_spread("sessions", self._exits_of(names), self._weights)

    def _exits_of(self, sessions: Sequence[str]) -> Counter[int]:
        def ask(session: str) -> int | None:
            try:
                sock = self._connect(session)
            except Refused:
                self.counts["refused"] += 1
                return None
            with sock:
                return read_exactly(sock, 1)[0] - 1

        return Counter(each for each in Pool(50).imap_unordered(ask, sessions) if each is not None)

    def _check_spread(self, what: str, found: Counter[int], quota: Sequence[float]) -> None:
        """Pearson's chi-square against the shares; beyond the bound once in a million."""
        scale = sum(found.values()) / sum(quota)
        statistic = sum(
            (found[number] - share * scale) ** 2 / (share * scale)
            for number, share in enumerate(quota)
        )
        free = len(quota) - 1
        # Wilson and Hilferty's approximation, 4.753 standard deviations out
        bound = free * (1 - 2 / (9 * free) + 4.753 * (2 / (9 * free)) ** 0.5) ** 3
        self.counts[f"{what}_spread_percent"] = round(100 * statistic / bound)
        if statistic > bound:
            self.violations.append(f"{what} spread as {dict(found)}, and not as {list(quota)}")

    def _processes(self) -> list[int]:
        pid = self._program.process.pid
        return [pid, *_children(pid)]

    def _sockets(self) -> int:
        return sum(len(_sockets(pid)) for pid in self._processes())

    def _note_state(self) -> None:
        """Descriptors and memory, once nothing is open."""
        deadline = time.monotonic() + 20
        # also until a worker that was killed is back
        while self._sockets() != self._listening and time.monotonic() < deadline:
            gevent.sleep(0.05)
        resident = descriptors = 0
        for pid in self._processes():
            status = Path(f"/proc/{pid}/status").read_text()
            resident += int(status.split("VmRSS:")[1].split()[0]) * 1024
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        self.descriptors.append(descriptors)
        self.memory.append(resident)

    def _note_lag(self) -> None:
        """How long turns of the loops took, of the workers that live."""
        loop = json.loads(self._status())["loop"]
        self.lags.append(loop["p99.9"])
        self.counts["turns"] += loop["turns"]
        self.counts["longest_turn_ms"] = max(
            self.counts["longest_turn_ms"], round(1000 * loop["longest"])
        )

    def _status(self) -> bytes:
        """What the admin tells: any worker does, but one that was killed just now."""
        told: list[bytes] = []

        def is_told() -> bool:
            with contextlib.suppress(*([ConnectionError] if self._workers > 1 else [])):
                told.append(self._ask_status())
            return bool(told)

        eventually(is_told, sleep=gevent.sleep)
        return told[0]

    def _ask_status(self) -> bytes:
        head = f"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n"
        with connect(self._admin) as sock:
            sock.sendall(f"{head}Connection: close\r\n\r\n".encode())
            return read_to_end(sock).partition(b"\r\n\r\n")[2]

    def _check_state(self) -> None:
        if self.descriptors[-1] > self.descriptors[0]:
            self.violations.append(f"descriptors: {self.descriptors}")
        # in the first half it has not yet seen all that takes memory once and for good
        if self.memory[-1] > 1.1 * self.memory[len(self.memory) // 2] + 4 * 1024 * 1024:
            self.violations.append(f"memory: {self.memory}")

    def told(self) -> str:
        """The figures, in a few lines."""
        figures = ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()))
        memory = " -> ".join(f"{each / 1e6:.1f} MB" for each in self.memory)
        descriptors = " -> ".join(map(str, self.descriptors))
        lag = f"loop lag p99.9 {1000 * max(self.lags):.0f} ms"
        blocked = "".join(f"\n{line}" for line in self.blocked[:20])
        return f"{figures}\nmemory {memory}, descriptors {descriptors}, {lag}{blocked}"


def tell_and_echo(sock: socket) -> None:
    sock.sendall(bytes((int(sock.getpeername()[0].rpartition(".")[2]),)))
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _sockets(pid: int) -> set[str]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {each for each in found if each.startswith("socket:")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--exits", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--workers", type=int, choices=(1, 2), help="so many only; otherwise half the time each"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}")
    violations = 0
    spells = (options.workers,) if options.workers else (1, 2)
    for workers in spells:
        soak = Soak(
            clients=options.clients,
            exits=options.exits,
            seed=options.seed,
            hostile=True,
            workers=workers,
        )
        soak.run(options.seconds / len(spells))
        print(f"{plural(workers, 'worker')}: {soak.told()}", flush=True)
        for violation in soak.violations[:20]:
            print(f"WRONG: {violation}")
        violations += len(soak.violations)
        # no matter of the short soak among the tests, whose machine may be busy
        if max(soak.lags) > _LAG:
            print(f"MISSED: one turn in a thousand takes no longer than {1000 * _LAG:.0f} ms")
            violations += 1
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
