"""The tester of other implementations finds no fault in gsocks, and the faults of others."""

from __future__ import annotations

import ast
import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nacl.exceptions import CryptoError

from gsocks.crypto import Cipher, Key, fast_ciphers
from tests.conformance.__main__ import parser
from tests.conformance.destinations import EchoServer
from tests.conformance.trial import Target
from tests.conformance.wire import Ended
from tests.support import other_end
from tests.support.other_end import FIN, OPEN, OPENED, PAD, PING, PONG, SECRETBOX, SKIPPED
from tests.support.ports import free_port
from tests.support.program import ROOT, Program
from tests.support.protocol_document import TEXT, table
from tests.support.waiting import TOO_LONG

KEY = Key(bytes(range(32)))
FOLDER = ROOT / "tests" / "conformance"


def run(*arguments: object, key: str = KEY.text()) -> subprocess.CompletedProcess[str]:
    """The tester as a program."""
    return subprocess.run(
        [sys.executable, "-m", "tests.conformance", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "GSOCKS_KEY": key},
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """By its line without the outcome: how each case has ended."""
    lines = re.findall(r"^ *\d+/\d+ +(ok|FAILED|not tried) +(.*)$", done.stdout, re.MULTILINE)
    return {what: how for how, what in lines}


# --- what it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*FOLDER.glob("*.py"), ROOT / "tests/support/other_end.py"], ids=lambda path: path.name
)
def test_the_tester_needs_python_and_pynacl_and_knows_nothing_of_gsocks(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names]  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    others = {
        name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "nacl"}
    }
    assert all(re.match(r"tests\.(conformance\.|support\.other_end)", name) for name in others)


def test_every_case_is_a_sentence_of_its_own() -> None:
    for options in ([], ["--client", "1"]):
        listed = run("--list", *options).stdout.splitlines()
        assert len(set(listed)) == len(listed)
        assert all(re.fullmatch(r"[a-z]+: \S.*\S", line) for line in listed)
    assert len(run("--list").stdout.splitlines()) >= 60


def test_the_document_has_its_options() -> None:
    options = {text for action in parser()._actions for text in action.option_strings}
    told = {cell.split()[0].strip("`") for cell, _ in table("option", "meaning")}
    told |= set(re.findall(r"--[a-z]+(?:-[a-z]+)*", TEXT.partition("## 13.")[2]))
    assert options - {"-h", "--help"} == told


@pytest.mark.parametrize(
    ("arguments", "key", "told"),
    [
        ((), KEY.text(), "which server"),
        (("nowhere",), KEY.text(), "HOST:PORT"),
        (("127.0.0.1:1",), "", "which key"),
        (("127.0.0.1:1",), "c2VjcmV0", "6 bytes"),
        (("127.0.0.1:1",), "not base64!", "not base64"),
        (("127.0.0.1:1", "--key-file", "/nowhere/key"), "", "No such file"),
        (("127.0.0.1:1", "--only", "no case at all"), KEY.text(), "no case"),
    ],
)
def test_what_it_can_not_do_is_told_in_one_line(
    arguments: tuple[str, ...], key: str, told: str
) -> None:
    done = run(*arguments, key=key)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not key or key not in done.stdout + done.stderr


@pytest.mark.parametrize("options", [[], ["--client", "0", "--socks"]])
def test_what_is_not_there_is_told(options: list[str]) -> None:
    done = run(*options, f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "refused" in done.stderr


# --- gsocks ---------------------------------------------------------------------------------------

SERVER = """
server:
  listen: 127.0.0.1:0
  keys: {{default: {{file: gsocks.key}}}}
  rules: [allow all]
  timeouts: {{handshake: 2s}}
"""

LOCAL = """
local:
  listen: 127.0.0.1:0
  exits:
    - url: gsocks://127.0.0.1:{port}
      key_file: gsocks.key
  pool: {{size: 0}}
"""


@contextmanager
def gsocks(folder: Path, config: str, inbound: str, **values: object) -> Iterator[int]:
    """A gsocks with this config; its port."""
    for name, text in ((f"{inbound}.yaml", config.format(**values)), ("gsocks.key", KEY.text())):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    # else requests fail at once for a while behind a reply that is never whole
    (folder / "sitecustomize.py").write_text(
        "from gsocks.exits.tunnel import TunnelExit\nTunnelExit.unproven_for = 0.0\n"
    )
    within = ("env", f"PYTHONPATH={folder}")
    with Program("-c", folder / f"{inbound}.yaml", within=within) as program:
        yield program.port(inbound)


def test_no_fault_is_found_in_a_gsocks_server_and_every_case_is_tried(tmp_path: Path) -> None:
    with gsocks(tmp_path, SERVER, "server") as port:
        done = run(f"127.0.0.1:{port}")
    seen = outcomes(done)
    if not fast_ciphers() & Cipher.AEGIS256:
        seen = {what: how for what, how in seen.items() if "has no aegis256" not in what}
    assert set(seen.values()) == {"ok"}, done.stdout
    assert done.returncode == 0
    assert KEY.text() not in done.stdout + done.stderr


def test_where_the_server_can_not_reach_this_machine_cases_are_not_tried_and_none_fails(
    tmp_path: Path,
) -> None:
    config = SERVER.replace("allow all", "deny loopback, allow all")
    with gsocks(tmp_path, config, "server") as port:
        done = run(f"127.0.0.1:{port}", "--only", "streams", "--only", "boxes")
    seen = outcomes(done)
    assert done.returncode == 0
    assert set(seen.values()) == {"ok", "not tried"}
    reason = "the server answers 0x02 for 127.0.0.1"
    assert all(reason in what for what, how in seen.items() if how == "not tried")


def test_a_peer_that_is_reset_before_its_connect_returns_was_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reset_at_once(*_: object) -> socket.socket:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    server = EchoServer()
    target = Target(("127.0.0.1", server.port), bytes(32), None, TOO_LONG)
    monkeypatch.setattr(socket, "create_connection", reset_at_once)
    try:
        with target.trial() as trial:
            peer = trial.connect(("127.0.0.1", 9), source="127.0.0.3")
            peer.expect_end("RST")
            with pytest.raises(Ended, match="RST"):
                peer.send(b"x")
            with pytest.raises(Ended, match="RST"):
                peer.end()
    finally:
        target.close()
        server.close()


def test_an_echo_service_elsewhere_stands_for_this_machine(tmp_path: Path) -> None:
    echo = EchoServer()
    config = SERVER.replace("allow all", f"allow 127.0.0.1:{echo.port}, deny loopback, allow all")
    with gsocks(tmp_path, config, "server") as port:
        only = ["--only", "a frame may carry", "--only", "20 streams", "--only", "client may pad"]
        done = run(f"127.0.0.1:{port}", "--target", f"127.0.0.1:{echo.port}", *only)
    echo.close()
    assert sorted(outcomes(done).values()) == ["not tried", "ok", "ok", "ok"], done.stdout


def test_no_fault_is_found_in_a_gsocks_client_and_every_case_is_tried(tmp_path: Path) -> None:
    port = free_port()
    with gsocks(tmp_path, LOCAL, "local", port=port) as socks:
        done = run("--client", port, "--socks", f"127.0.0.1:{socks}")
    assert set(outcomes(done).values()) == {"ok"}, done.stdout
    assert done.returncode == 0


# --- ends with faults -----------------------------------------------------------------------------


class PlainServer:
    """A server that refuses every request; and has one of the faults that :data:`FAULTS` names."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.seen: set[bytes] = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        until = time.monotonic() + 2.0
        with sock:
            try:
                self._tunnel(sock)
            except (ValueError, CryptoError):
                if self.fault != "closes on strangers at once":
                    discard(sock, until)
            except OSError:
                pass  # the tester has closed it

    def _tunnel(self, sock: socket.socket) -> None:
        exactly = exactly_from(sock)
        end = other_end.Server(KEY.raw(), os.urandom(32))
        sock.settimeout(2.0)
        said = end.read_hello(exactly)
        sock.settimeout(None)
        replayed = end.client_public in self.seen and self.fault != "takes a hello twice"
        self.seen.add(end.client_public)
        if replayed or not said.offered & SECRETBOX:
            raise ValueError("a stranger")
        features = said.features if self.fault == "chooses features" else 0
        reply, ours, theirs = end.reply(SECRETBOX, other_end.VERSION, features)
        sock.sendall(reply)
        try:
            self._frames(sock, exactly, ours, theirs)
        except (ValueError, CryptoError):
            return

    def _frames(
        self,
        sock: socket.socket,
        exactly: Callable[[int], bytes],
        ours: other_end.Boxes,
        theirs: other_end.Boxes,
    ) -> None:
        pads = 0
        while True:
            kind, _ = theirs.read_frame(exactly)
            is_pad = kind == PAD or kind >= SKIPPED
            pads = pads + 1 if is_pad else 0
            if pads > 256 and self.fault != "counts no PADs":
                raise ValueError("too many PADs")
            if kind == PING:
                filler = b"\x01" if self.fault == "fills PONG with ones" else b"\0"
                sock.sendall(ours.frame(PONG, filler * 5))
            elif kind == OPEN:
                code = 0x05 if self.fault == "answers another code" else 0x01
                sock.sendall(ours.frame(OPENED, bytes((code, 0x01)) + bytes(6)))
                while theirs.read_frame(exactly)[0] != FIN:
                    pass
            elif not is_pad and self.fault != "ignores unknown types":
                raise ValueError("a violation")


def discard(sock: socket.socket, until: float) -> None:
    """What comes until then."""
    try:
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(65536):
                time.sleep(max(0.0, until - time.monotonic()))
    except TimeoutError:
        pass  # it is over


def exactly_from(sock: socket.socket) -> Callable[[int], bytes]:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = sock.recv(count - len(data))
            if not part:
                raise ValueError("ended")
            data += part
        return data

    return exactly


#: by fault: the cases that find it
FAULTS = {
    "closes on strangers at once": {
        "silence: silence meets 52 random bytes",
        "silence: silence meets a hello that is replayed",
        "silence: silence meets a hello that is replayed while its tunnel lives",
    },
    "takes a hello twice": {
        "silence: silence meets a hello that is replayed",
        "silence: silence meets a hello that is replayed while its tunnel lives",
    },
    "chooses features": {"agreement: offered features that are unknown are not chosen"},
    "counts no PADs": {"bounds: no more than 256 may come in a row of PADs"},
    "fills PONG with ones": {"frames: ping is answered by pong if it has no body"},
    "answers another code": {"answers: code 0x01 answers the name of length 0"},
    "ignores unknown types": {"frames: an unknown type closes the tunnel 0x0A"},
}


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_a_fault_of_a_server_is_found_by_its_cases_alone(fault: str) -> None:
    server = PlainServer(fault)
    with server.listener:
        only = [each for case in set().union(*FAULTS.values()) for each in ("--only", case)]
        done = run(f"127.0.0.1:{server.port}", *only, "--timeout", 5)
    failed = {what for what, how in outcomes(done).items() if how == "FAILED"}
    found = {what.partition(": expected")[0] for what in failed}
    assert found == FAULTS.get(fault, set()), done.stdout
    assert all(re.search(": expected .*, saw ", what) for what in failed)
    assert done.returncode == (1 if fault else 0)


def test_a_fault_of_a_client_is_found() -> None:
    """It takes any reply for one, and waits."""
    port = free_port()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                sock = socket.create_connection(("127.0.0.1", port))
            except OSError:
                over.wait(0.05)  # the tester does not listen yet
                continue
            with sock:
                sock.sendall(other_end.Client(KEY.raw(), os.urandom(32)).hello(0, SECRETBOX))
                over.wait()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    done = run("--client", port, "--only", "a flipped bit", "--timeout", 2)
    over.set()
    asking.join()
    assert "FAILED" in outcomes(done).values()
    assert done.returncode == 1
