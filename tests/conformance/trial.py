"""A server that is tried, and what each case does with it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import time
from contextlib import ExitStack

from nacl.exceptions import CryptoError

from tests.conformance.cases import Failed, NotTried
from tests.conformance.destinations import LOOPBACK, EchoServer, Listener, closed_port
from tests.conformance.wire import Connection, Deadline, Ended, Nothing, Tunnel
from tests.support import other_end
from tests.support.other_end import OPEN, SECRETBOX, Agreed

CONNECT, BIND, UDP_ASSOCIATE = 0x01, 0x02, 0x03
RESOLVE, RESOLVE_PTR = 0xF0, 0xF1

#: what OPEN has where an address has no meaning
NO_ADDRESS = b"\x01" + bytes(6)

#: seconds by which the silences of strangers may differ, on a machine that has other work
TOLERANCE = 1.0

Place = tuple[str, int]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def address(host: str, port: int) -> bytes:
    """An address in the document's form; of a name, as a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return name(host, port)
    return (b"\x01" if ip.version == 4 else b"\x04") + ip.packed + port.to_bytes(2, "big")


def name(text: str, port: int = 80) -> bytes:
    """An address that is a name, whatever the text."""
    raw = text.encode("latin-1")
    return bytes((0x03, len(raw))) + raw + port.to_bytes(2, "big")


def open_to(host: str, port: int, command: int = CONNECT) -> tuple[int, bytes]:
    """An OPEN."""
    return OPEN, bytes((command,)) + address(host, port)


class Silence:
    """How long the server is silent: how old a connection is that says nothing, at its end."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._seconds: float | None = None

    def begin(self) -> None:
        """Measure it, beside all that goes on.  Does nothing the second time."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._measure, daemon=True)
                self._thread.start()

    def seconds(self) -> float:
        """Waits until it is known.  Raises Failed."""
        self.begin()
        if self._thread is not None:
            self._thread.join()
        if self._seconds is None:
            within = f"{self._target.seconds:g} s"
            raise Failed(f"FIN within {within} to a client that says nothing", "none")
        return self._seconds

    def _measure(self) -> None:
        with self._target.trial() as trial:
            connection = trial.connect()
            try:
                connection.to_its_end()
            except Nothing:
                return  # as :meth:`seconds` tells
            self._seconds = connection.age


class Target:
    """The server, and what is known of it.

    ``echo``: where an echo service is that it can reach.  ``seconds``: what each case has.
    """

    def __init__(self, server: Place, key: bytes, echo: Place | None, seconds: float) -> None:
        self.server = server
        self.key = key
        self.seconds = seconds
        self.silence = Silence(self)
        self._own_echo = EchoServer()
        self._given_echo = echo
        #: why it can't be sent to listeners of the tester's own; "": it can
        self.obstacle = self._find_obstacle()

    def close(self) -> None:
        self._own_echo.close()

    def trial(self) -> Trial:
        return Trial(self)

    @property
    def echo(self) -> Place:
        """An echo service.  Raises NotTried."""
        if self._given_echo is not None:
            return self._given_echo
        if self.obstacle:
            raise NotTried(f"no echo service: {self.obstacle} (--target names one)")
        return LOOPBACK, self._own_echo.port

    def _find_obstacle(self) -> str:
        with self.trial() as trial:
            try:
                connection = trial.connect()
                here, there = connection.sock.getsockname()[0], connection.sock.getpeername()[0]
                if here != there and not there.startswith("127."):
                    return "the server is on another machine"
                tunnel = trial.tunnel()
                tunnel.send(open_to(LOOPBACK, self._own_echo.port))
                bound = tunnel.read_answer(tunnel.expect(other_end.OPENED))
            except (Failed, Ended) as error:
                return f"no stream to this machine could be opened: {error}"
        return f"the server answers {bound.code:#04x} for {LOOPBACK}" if bound.code else ""


class Trial:
    """What one case does; its sockets are closed behind it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.key = target.key
        self.deadline = Deadline(target.seconds)
        self._stack = ExitStack()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- the server ---------------------------------------------------------------------------

    def connect(self, to: Place | None = None, source: str | None = None) -> Connection:
        """A connection, to the server if to nothing else, from that address if from any.

        It may have been reset already.  Raises OSError, and NotTried if the address is not this
        machine's.
        """
        place, within = to or self.target.server, self.deadline.left
        try:
            sock = socket.create_connection(place, within, (source, 0) if source else None)
        except ConnectionResetError:
            # It was there, and reset before the system call had its result, which takes the reset
            # off the socket: one that has no connection says the same to every call.
            sock = socket.socket()
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise NotTried(f"{source} is no address of this machine") from None
            raise
        self._stack.enter_context(sock)
        return Connection(sock, self.deadline)

    def client(self, key: bytes | None = None, salt: bytes | None = None) -> other_end.Client:
        """The client's part in an agreement."""
        return other_end.Client(key or self.key, os.urandom(32), salt)

    def hello(self, ahead_ms: int = 0, offered: int = SECRETBOX) -> bytes:
        """A hello whose reply won't be read."""
        return self.client().hello(now_ms() + ahead_ms, offered)

    def crafted_hello(
        self,
        client: other_end.Client,
        *,
        public: bytes = b"",
        filler: int = 0,
        prologue: bytes = b"gsocks/2",
    ) -> bytes:
        """A hello whose tag is right, with another public key, padding or prologue."""
        public = public or other_end.public_of(client.private)
        hint, padding, mask = other_end.hello_shape(client.key, client.salt)
        client.noise = other_end.Noise(client.key, prologue)
        client.noise.e(public)
        offer = bytes((other_end.VERSION, SECRETBOX, 0))
        sealed = client.noise.seal(now_ms().to_bytes(8, "big") + offer + bytes((filler,)) * padding)
        return client.salt + hint + other_end.xor(public, mask) + sealed

    def agree(
        self, client: other_end.Client, hello: bytes, pieces: int | None = None
    ) -> tuple[Connection, Agreed]:
        """Send a hello, in pieces of that size, and read the reply."""
        connection = self.connect()
        for start in range(0, len(hello), pieces or len(hello)):
            connection.send(hello[start : start + (pieces or len(hello))])
        try:
            return connection, client.read_reply(connection.exactly)
        except Ended as ended:
            raise Failed("a reply", str(ended)) from None
        except (CryptoError, KeyError):
            raise Failed("a reply that opens under the key and names a cipher", "none") from None

    def tunnel(self, offered: int = SECRETBOX) -> Tunnel:
        """An agreed tunnel."""
        client = self.client()
        connection, agreed = self.agree(client, client.hello(now_ms(), offered))
        return Tunnel(connection, agreed.sealing, agreed.opening)

    def looking_up(self) -> Tunnel:
        """A tunnel with look-ups.  Raises NotTried."""
        client = self.client()
        hello = client.hello(now_ms(), SECRETBOX, features=other_end.LOOK_UPS)
        connection, agreed = self.agree(client, hello)
        if not agreed.features & other_end.LOOK_UPS:
            raise NotTried("the server looks nothing up")
        return Tunnel(connection, agreed.sealing, agreed.opening)

    def aegis_tunnel(self) -> Tunnel:
        """One that is sealed by aegis256.  Raises NotTried."""
        tunnel = self.tunnel(other_end.SECRETBOX | other_end.AEGIS256)
        if tunnel.sealing.cipher != other_end.AEGIS256:
            raise NotTried("the server has no aegis256")
        return tunnel

    def echo(self, tunnel: Tunnel | None = None) -> Tunnel:
        """A stream to an echo service, in a new tunnel or in that one."""
        place = self.target.echo
        tunnel = tunnel or self.tunnel()
        tunnel.send(open_to(*place))
        tunnel.expect_opened()
        return tunnel

    # --- destinations -------------------------------------------------------------------------

    def need_own_machine(self) -> None:
        """Raises NotTried if the server can't reach the tester's own listeners."""
        if self.target.obstacle:
            raise NotTried(self.target.obstacle)

    def listener(self, host: str = LOOPBACK) -> Listener:
        """A destination.  Raises NotTried."""
        self.need_own_machine()
        made = Listener(self.deadline, host)
        self._stack.enter_context(made.sock)
        return made

    def stream(self) -> tuple[Tunnel, Connection]:
        """A stream, and its destination's end."""
        listener = self.listener()
        tunnel = self.tunnel()
        tunnel.send(open_to(LOOPBACK, listener.port))
        tunnel.expect_opened()
        try:
            connection = listener.accept()
        except TimeoutError:
            raise Failed("a connection to the destination behind OPENED", "none") from None
        self._stack.enter_context(connection.sock)
        return tunnel, connection

    def nothing_listens(self) -> Place:
        """A place where a connection is refused.  Raises NotTried."""
        self.need_own_machine()
        sock = self._stack.enter_context(closed_port())
        return LOOPBACK, sock.getsockname()[1]

    def udp(self, host: str = LOOPBACK) -> socket.socket:
        """A socket for datagrams.  Raises NotTried."""
        self.need_own_machine()
        sock = self._stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        try:
            sock.bind((host, 0))
        except OSError as error:
            raise NotTried(f"{host}: {error.strerror}") from None
        sock.settimeout(self.deadline.left)
        return sock

    # --- strangers ----------------------------------------------------------------------------

    def expect_silence(self, said: bytes, *, ends: bool = False, talks_on: bool = False) -> None:
        """That the server answers this by nothing but FIN, and as late as to all strangers.

        ``ends``: the client ends its direction; ``talks_on``: it sends until the end.
        """
        self.target.silence.begin()
        connection = self.connect()
        connection.send(said)
        if ends:
            connection.end()
        if talks_on:
            threading.Thread(target=_talk, args=(connection.sock,), daemon=True).start()
        data, how = connection.to_its_end()
        age = connection.age
        if data:
            raise Failed("silence", f"{len(data)} bytes")
        if how != "EOF":
            raise Failed("FIN", how)
        seconds = self.target.silence.seconds()
        if abs(age - seconds) > TOLERANCE:
            raise Failed(f"FIN after {seconds:.1f} s, as without a byte", f"it after {age:.1f} s")


def _talk(sock: socket.socket) -> None:
    talking = sock.dup()  # closed here, while the case waits for the end
    try:
        with talking:
            while True:
                talking.sendall(bytes(1000))
                time.sleep(0.01)
    except OSError:
        pass  # the server has ended it
