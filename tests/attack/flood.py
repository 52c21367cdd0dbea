"""What a flood is made of: gsocks as a process, hostile clients and origins in threads.

A flood is a function with the decorator :func:`flood`, in a module ``floods_AREA`` beside this::

    @flood("a client pipelines requests that are answered at once")
    def pipelined_requests(scene: Scene) -> Attacked:
        program = scene.gsocks("local: {listen: '127.0.0.1:0', rules: [allow all]}")
        scene.pour(program.port(), b"OPTIONS ..." * 1000)
        return Attacked(program, Witness(program.port()))

It returns as soon as the flood is on its way.  The scene ends all that it has started.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pkgutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import tests.attack
from tests.attack.witness import GIVE_UP, Testimony, Witness
from tests.support.program import UNTRACED, Program
from tests.support.waiting import TOO_LONG

#: seconds after which a thread of a flood whose peer has closed tries again
_AGAIN = 0.01

#: seconds after which a connection over which nothing can be sent is replaced
_PATIENCE = 10.0


#: of the local end before a flooded server: it is as patient as the witness.  A SYN that the kernel
#: drops, as its queue is full, is repeated after 1 s and again after 2 s more, when the local end
#: would have given up by default.
PATIENT = f"timeouts: {{connect: {GIVE_UP:g}s, exit: {GIVE_UP:g}s}}"

#: seconds between two looks at whether the flood has gone on
_LOOKS = 0.01

#: how often the flood has to get something done while the witness asks.  Of a source whose list
#: takes seconds: it has sent one, gsocks has asked for the next, and one of these once more, as
#: gsocks may have asked for the first before or after the witness began.  So one list is read from
#: its beginning to its end meanwhile.
_STEPS = 3


class Attacked(NamedTuple):
    """The gsocks that is under attack, and another client of it."""

    #: which gets the signals
    program: Program
    witness: Witness

    def ask(self, scene: Scene, requests: int) -> tuple[Testimony, bool]:
        """What the witness sees, and whether the flood went on meanwhile.

        It asks ``requests`` times, and then on until the flood has gone on.
        """
        with self.witness.asking(requests) as asking:
            enough = scene.done + _STEPS
            scene.asked.set()
            deadline = time.monotonic() + TOO_LONG
            while scene.done < enough and not asking.ended and time.monotonic() < deadline:
                time.sleep(_LOOKS)
            flooded = scene.done >= enough
        return asking.testimony, flooded


class Scene:
    """Starts gsocks and its enemies; ends them all at its exit."""

    def __init__(self, folder: Path) -> None:
        #: of the configs, and of what they name
        self.folder = folder
        #: set at the end
        self.over = threading.Event()
        #: set when the witness begins; and at the end, for what waits for it
        self.asked = threading.Event()
        self._done = 0
        self._numbers = itertools.count()
        self._programs = ExitStack()
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """How often the flood's threads got something done: it grows while the flood goes on."""
        return self._done

    def gsocks(self, config: str) -> Program:
        """A gsocks in a process of its own, with this text as its config."""
        path = self.folder / f"gsocks{next(self._numbers)}.yaml"
        path.write_text(config)
        return self._programs.enter_context(Program("-c", path, within=UNTRACED))

    def keep_doing(self, step: Callable[[], object]) -> None:
        """Call ``step`` in a thread until the scene is over; each call that doesn't raise counts.

        After OSError, as of a connection that gsocks has closed, it is called again a
        little later.
        """
        self._thread(self._repeat, step)

    def connect(self, port: int, source: str = "127.0.0.1", timeout: float = TOO_LONG) -> _Tracked:
        """Connect to a port on loopback.  Close it, or leave that to the end of the scene."""
        address = ("127.0.0.1", port)
        return self._track(socket.create_connection(address, timeout, source_address=(source, 0)))

    def pour(
        self,
        port: int,
        data: bytes,
        greet: Callable[[socket.socket], object] = lambda sock: None,
        source: str = "127.0.0.1",
    ) -> None:
        """Send ``data`` again and again to a port on loopback, and read all that comes back.

        A new connection replaces one that gsocks has closed; ``greet`` is called with each first.
        """

        def one_connection() -> None:
            with self.connect(port, source, _PATIENCE) as sock:
                greet(sock)
                with self.drained(sock):
                    while not self.over.is_set():
                        sock.sendall(data)
                        self.note_done()

        self.keep_doing(one_connection)

    @contextmanager
    def drained(self, sock: socket.socket) -> Iterator[None]:
        """Read all that comes while the block runs, in a thread; then shut the connection down."""
        reader = self._thread(_drain, sock)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # which wakes the reader
            # Before the socket is closed: another one may get its descriptor, for which the reader
            # would wait then.
            reader.join(TOO_LONG)

    def origin(self, serve: Callable[[socket.socket], object], host: str = "127.0.0.1") -> int:
        """A server that calls ``serve`` with each connection, in a thread; gives its port.

        An OSError ends only the connection.  ``serve`` should look at ``over`` if it goes on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = self._track(socket.create_server((host, 0), family=family, backlog=1024))
        port: int = listener.getsockname()[1]
        self._thread(self._accept, listener, serve)
        return port

    def close(self) -> None:
        """End everything that was started."""
        self.over.set()
        self.asked.set()
        with self._lock:
            for sock in list(self._sockets):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # which wakes the thread that uses it
        self._programs.close()
        # the last of them may have started others in the meantime
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            alive[0].join(TOO_LONG)
            assert not alive[0].is_alive(), "a thread never ended"
        for sock in list(self._sockets):
            sock.close()

    def note_done(self) -> None:
        """The flood's threads got something done."""
        with self._lock:
            self._done += 1

    # --- threads ------------------------------------------------------------------------------

    def _thread(self, work: Callable[..., object], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            with contextlib.suppress(OSError):
                work(*arguments)

        thread = threading.Thread(target=guarded, daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive() or not each.ident]
            self._threads.append(thread)
            thread.start()
        return thread

    def _repeat(self, step: Callable[[], object]) -> None:
        while not self.over.is_set():
            try:
                step()
                self.note_done()
            except OSError:  # noqa: PERF203
                self.over.wait(_AGAIN)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], object]) -> None:
        def served(sock: socket.socket) -> None:
            with sock:
                serve(sock)

        while True:
            accepted, _ = listener.accept()
            self._thread(served, self._track(accepted))
            self.note_done()

    def _track(self, sock: socket.socket) -> _Tracked:
        tracked = _Tracked(self._sockets, sock)
        with self._lock:
            self._sockets.add(tracked)
            if self.over.is_set():
                tracked.close()
        return tracked


class _Tracked(socket.socket):
    """A socket that leaves its set when it is closed."""

    def __init__(self, among: set[socket.socket], sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)
        self._among = among

    def close(self) -> None:
        self._among.discard(self)
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)  # a thread that reads from it would not see the close
        super().close()


def _drain(sock: socket.socket) -> None:
    while sock.fileno() >= 0:
        with contextlib.suppress(TimeoutError):  # it waits for as long as the socket is open
            if not sock.recv(1 << 18):
                return


# --- the registry -----------------------------------------------------------------------------

Start: TypeAlias = Callable[[Scene], Attacked]


class Flood(NamedTuple):
    """``title``: what the hostile peer does, as a sentence's beginning."""

    name: str
    title: str
    start: Start


_floods: dict[str, Flood] = {}


def flood(title: str) -> Callable[[Start], Start]:
    """Put the function into the registry."""

    def register(start: Start) -> Start:
        assert start.__name__ not in _floods, start.__name__
        _floods[start.__name__] = Flood(start.__name__, title, start)
        return start

    return register


def floods() -> list[Flood]:
    """All of them, in a fixed order."""
    for module in sorted(found.name for found in pkgutil.iter_modules(tests.attack.__path__)):
        if module.startswith("floods_"):
            importlib.import_module(f"tests.attack.{module}")
    return list(_floods.values())


@contextmanager
def under(start: Start, folder: Path) -> Iterator[tuple[Scene, Attacked]]:
    """The scene of a flood that is on its way, and what it attacks."""
    scene = Scene(folder)
    try:
        yield scene, start(scene)
    finally:
        scene.close()
