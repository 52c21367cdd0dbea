"""A soak of the rotating proxy: exits die and return at random while clients go on.

    python tests/soak.py --seconds 300

gsocks runs as a program, in front of proxies that this process plays: each is known to the target
by its source address, which tells every client who has served it.  Whatever the weather,

- a client gets back exactly its own bytes, all of them, or a reset: nothing is lost or mixed up;
- a session keeps its exit until that one was away;
- while all is well, exits are used by their shares, by sessions and without;
- when it is over, the program holds no descriptor more than before, and hardly more memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket as std_socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import gevent
from engine import connect, read_exactly, serving
from gevent.pool import Pool
from gevent.socket import socket
from program import Program
from proxies import WELL, Mood, Moody

from gsocks.address import Address

#: how an exit may be away, beside being gone
AWAY = [
    Mood("garbage", "greeting"),
    Mood("close", "login"),
    Mood("reset", "reply"),
    Mood("hang", "accept"),
]

_CONFIG = """
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  rotate: random
  timeouts: {connect: 3s}
  health: {base: 500ms, longest: 2s}
  limits: {per_client: 100000}
  exits:
"""

#: seconds after which all exits are back that are well; the config's longest, and a little
_ALL_BACK = 2.5

#: times at most that the program is left alone, so that what it holds can be measured
_SPELLS = 10

#: bytes that a client sends at most
_MOST = 50_000


class Served(NamedTuple):
    """One connection of a client."""

    began: float
    #: when the exit was known
    known: float
    exit: int


class Refused(Exception):
    """No exit connected the request."""


class Soak:
    """One soak, and what it has found."""

    def __init__(self, *, clients: int, exits: int, seed: int) -> None:
        self._clients = clients
        self._random = Random(seed)
        self._exits = [Moody(source=f"127.0.1.{number + 1}") for number in range(exits)]
        #: by exit: from when until when it was away
        self._away: dict[int, list[tuple[float, float]]] = defaultdict(list)
        #: those that are away, or about to be
        self._leaving: set[int] = set()
        self._weights = [1 + number % 2 for number in range(exits)]
        self._door = self._target = Address("", 0)
        self._going = True
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
            self._target = stack.enter_context(serving(_tell_and_echo))
            program = stack.enter_context(self._program())
            self._door = Address("127.0.0.1", program.port())
            self._check_shares()
            spells = max(2, min(_SPELLS, int(seconds / 30)))
            for _ in range(spells):
                self._weather(seconds / spells, changing=True)
                self._note_state(program.process.pid)
            gevent.sleep(_ALL_BACK)
            refused = self.counts["refused"]
            self._check_shares()
            if self.counts["refused"] > refused:
                self.violations.append("requests are refused though all exits are well")
            self._note_state(program.process.pid)
        self._check_state()

    @contextmanager
    def _program(self) -> Iterator[Program]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "soak.yaml"
            exits = zip(self._exits, self._weights, strict=True)
            lines = [f"    - {{url: '{each.url}', weight: {weight}}}\n" for each, weight in exits]
            path.write_text(_CONFIG + "".join(lines))
            with Program("-c", path) as program:
                yield program

    # --- the weather ------------------------------------------------------------------------

    def _weather(self, seconds: float, *, changing: bool = False) -> None:
        """Clients for so long, under exits that come and go if it is ``changing``."""
        self._going = True
        clients = [gevent.spawn(self._be_a_client, number) for number in range(self._clients)]
        changes = gevent.spawn(self._change) if changing else None
        gevent.sleep(seconds)
        self._going = False
        if changes is not None:
            changes.join()
        gevent.joinall(clients, raise_error=True)

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
        """Connect again and again; three of four clients have a session."""
        session = f"client{number}" if number % 4 else ""
        chance = Random(self._random.random())
        served: list[Served] = []
        while self._going:
            self.counts["requests"] += 1
            try:
                served.append(self._converse(session, chance))
            except Refused:
                self.counts["refused"] += 1
            gevent.sleep(chance.expovariate(2))
        if session:
            self._check_session(session, served)

    def _check_session(self, session: str, served: Sequence[Served]) -> None:
        for before, after in pairwise(served):
            if before.exit != after.exit:
                self.counts["moves"] += 1
                if not self._was_away(before.exit, before.began, after.known):
                    self.violations.append(f"{session} left exit {before.exit}, which was not away")

    def _converse(self, session: str, chance: Random) -> Served:
        """One connection: bytes of its own, sent and got back while others do the same."""
        began = time.monotonic()
        sock = self._connect(session)
        try:
            exit_ = read_exactly(sock, 1)[0] - 1
            served = Served(began, time.monotonic(), exit_)
        except (OSError, EOFError):
            # it was connected, and its exit went away before a byte had come
            sock.close()
            self.counts["cut"] += 1
            raise Refused from None
        data = chance.randbytes(chance.randrange(1, _MOST))
        sender = gevent.spawn(_send, sock, data)
        got = 0
        try:
            while part := sock.recv(65536):
                if part != data[got : got + len(part)]:
                    self.violations.append(f"byte {got} or one behind it is not the client's own")
                got += len(part)
            # the kernel tells of a reset once, to whoever asks first
            if got < len(data) and (failure := sender.get()) is not None:
                raise failure
        except OSError:
            self.counts["cut"] += 1
            if not self._was_away(exit_, began, time.monotonic()):
                self.violations.append(f"reset by exit {exit_}, which was not away")
        else:
            self.counts["whole"] += 1
            if got != len(data):
                self.violations.append(f"{len(data) - got} bytes lost, and told as an end")
        finally:
            sender.kill()
            sock.close()
        self.counts["bytes"] += 2 * got
        return served

    def _connect(self, session: str) -> socket:
        sock = connect(self._door)
        try:
            if session:
                name = f"session-{session}".encode()
                sock.sendall(b"\x05\x01\x02" + b"\x01" + bytes((len(name),)) + name + b"\x01x")
                read_exactly(sock, 4)
            else:
                sock.sendall(b"\x05\x01\x00")
                read_exactly(sock, 2)
            sock.sendall(b"\x05\x01\x00" + self._target.encode())
            if read_exactly(sock, 4)[1]:
                raise Refused
            read_exactly(sock, 6)
        except BaseException:
            sock.close()
            raise
        return sock

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

    def _check_spread(self, what: str, found: Counter[int], shares: Sequence[float]) -> None:
        """Pearson's chi-square against the shares; beyond the bound once in a million."""
        scale = sum(found.values()) / sum(shares)
        statistic = sum(
            (found[number] - share * scale) ** 2 / (share * scale)
            for number, share in enumerate(shares)
        )
        free = len(shares) - 1
        # Wilson and Hilferty's approximation, 4.753 standard deviations out
        bound = free * (1 - 2 / (9 * free) + 4.753 * (2 / (9 * free)) ** 0.5) ** 3
        self.counts[f"{what}_spread_percent"] = round(100 * statistic / bound)
        if statistic > bound:
            self.violations.append(f"{what} spread as {dict(found)}, and not as {list(shares)}")

    def _note_state(self, pid: int) -> None:
        """Descriptors and memory, once nothing is open."""
        deadline = time.monotonic() + 20
        while len(_sockets(pid)) > 1 and time.monotonic() < deadline:  # one that listens
            gevent.sleep(0.05)
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
        self.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
        self.memory.append(resident)

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
        return f"{figures}\nmemory {memory}, descriptors {descriptors}"


def _tell_and_echo(sock: socket) -> None:
    sock.sendall(bytes((int(sock.getpeername()[0].rpartition(".")[2]),)))
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


def _send(sock: socket, data: bytes) -> OSError | None:
    try:
        sock.sendall(data)
        sock.shutdown(std_socket.SHUT_WR)
    except OSError as error:
        return error
    return None


def _sockets(pid: int) -> set[str]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {each for each in found if each.startswith("socket:")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--exits", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    soak = Soak(clients=options.clients, exits=options.exits, seed=options.seed)
    soak.run(options.seconds)
    print(soak.told())
    for violation in soak.violations[:20]:
        print(f"WRONG: {violation}")
    return bool(soak.violations)


if __name__ == "__main__":
    sys.exit(main())
