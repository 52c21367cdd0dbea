"""The guards of a listener, as the config sets them up for the program.

No gevent here, as in test_program.py.
"""

from __future__ import annotations

import re
import signal
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsocks.access.throttle import Throttle
from tests.support.newcomers import LOCAL, USERS, V1, V2, cheap, is_turned_away, login
from tests.support.program import Program, gsocks, in_threads, write_private
from tests.support.waiting import TOO_LONG, eventually


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """A server to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextmanager
def coming(port: int, *said: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG) as sock:
        sock.sendall(b"".join(said))
        yield sock


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"ended behind {data!r}"
        data += part
    return data


def log_in(port: int, name: bytes, password: bytes) -> bool:
    with coming(port, login(name, password)) as sock:
        assert read_exactly(sock, 3) == b"\x05\x02\x01"
        return read_exactly(sock, 1) == b"\0"


def request(to: socket.socket) -> bytes:
    host: str
    port: int
    host, port = to.getsockname()
    return b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big")


def write(folder: Path, local: str, server: str = "") -> Path:
    path = folder / "config.yaml"
    text = f"local:\n  listen: 127.0.0.1:0\n{textwrap.indent(local, '  ')}\n"
    if server:
        text += f"server:\n  listen: 127.0.0.1:0\n{textwrap.indent(server, '  ')}\n"
    write_private(path, text)
    return path


def looks_until(program: Program, port: int, told: str) -> None:
    """Log in, at which the program looks at its file now and then, until it has told that."""
    eventually(lambda: log_in(port, b"alice", b"secret") and re.search(told, program.log))


def test_a_users_file_is_followed_while_the_program_runs(tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text(f"# our users\nbob:{USERS['bob']}\n")
    config = write(tmp_path, f"users: {{alice: '{USERS['alice']}'}}\nusers_file: users.txt")
    with Program("-c", config) as program:
        port = program.port()
        assert log_in(port, b"alice", b"secret")
        assert log_in(port, b"bob", b"hidden")
        file.write_text(f"carol:{cheap(b'fresh')}\n")
        looks_until(program, port, r"reloaded: .*users\.txt")
        assert log_in(port, b"carol", b"fresh")
        assert not log_in(port, b"bob", b"hidden")
        file.write_text("carol")
        looks_until(program, port, r"the previous users stay in effect: .*users\.txt: line 1: ")
        assert log_in(port, b"carol", b"fresh")
        # the config is reloaded, and the file with it
        file.write_text(f"carol:{cheap(b'other')}\n")
        config.write_text(config.read_text().replace("alice", "dave"))
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: keys, users and exits")
        assert log_in(port, b"carol", b"other")
        assert log_in(port, b"dave", b"secret")
        assert not log_in(port, b"alice", b"secret")
        (tmp_path / "others.txt").write_text("# no users\n")
        config.write_text(config.read_text().replace("users.txt", "others.txt"))
        program.signal(signal.SIGHUP)
        program.wait_for(r"not reloaded, .*: local\.users_file: another file needs a restart")
        assert log_in(port, b"dave", b"secret")
        assert "$argon2id$" not in program.log


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bob:secret", "users.txt: line 1: user 'bob': expected an Argon2id hash"),
        ("", "users.txt: is empty"),
        (f"alice:{USERS['alice']}", "users.txt: line 1: user 'alice' is also in the config"),
    ],
)
@pytest.mark.parametrize("command", [(), ("check",)])
def test_a_mistake_in_the_users_file_is_told_at_the_start(
    tmp_path: Path, file: str, expected: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "users.txt").write_text(file)
    config = write(tmp_path, f"users: {{alice: '{USERS['alice']}'}}\nusers_file: users.txt")
    done = gsocks(*command, "-c", config)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_names_the_users_of_the_file_and_not_all_of_many(tmp_path: Path) -> None:
    lines = [f"user{number:03}:{USERS['alice']}" for number in range(20)]
    (tmp_path / "users.txt").write_text("\n".join(lines))
    done = gsocks("check", "-c", write(tmp_path, "users_file: users.txt"))
    assert done.returncode == 0
    assert "local: users user000, user001, " in done.stdout
    assert "user009 and 10 more\n" in done.stdout


def test_check_says_that_a_file_names_no_user(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("# none yet\n")
    done = gsocks("check", "-c", write(tmp_path, "users_file: users.txt"))
    assert "local: users none yet, so no login succeeds\n" in done.stdout


def test_the_guards_of_the_config_stand_at_the_programs_inbounds(
    tmp_path: Path, target: socket.socket
) -> None:
    local = (
        "rules: [allow all]\nclients: [192.0.2.0/24]\nproxy_protocol_from: [127.0.0.1]\n"
        f"users: {{alice: '{USERS['alice']}'}}\nlimits: {{per_user: 1, handshakes: 50}}"
    )
    with Program("-c", write(tmp_path, local)) as program:
        port = program.port()
        asked = login(b"alice", b"secret") + request(target)
        with coming(port, V2, asked) as first:
            assert read_exactly(first, 6) == b"\x05\x02\x01\x00\x05\x00"
            with coming(port, V1, asked) as second:
                assert read_exactly(second, 6) == b"\x05\x02\x01\x00\x05\x01"
            program.wait_for("client=192.0.2.7:51000 user=alice .*outcome=limit")
        with coming(port, LOCAL) as sock:
            assert is_turned_away(sock)
        program.wait_for("client=127.0.0.1:.* outcome=client_forbidden")
        with coming(port, b"\x05") as sock:
            assert is_turned_away(sock)
        program.wait_for("client=127.0.0.1:.* outcome=bad_proxy_header")


def test_the_guards_of_the_config_stand_at_the_inbound_of_its_server(tmp_path: Path) -> None:
    server = (
        "keys: {laptop: {file: a.key}}\n"
        "clients: [192.0.2.0/24]\nproxy_protocol_from: [127.0.0.1]\nlimits: {per_client: 1}"
    )
    with Program("-c", write(tmp_path, "", server)) as program:
        port = program.port("server")
        with coming(port, LOCAL) as sock:
            assert is_turned_away(sock)
        program.wait_for("inbound=server client=127.0.0.1:.* outcome=client_forbidden")
        with coming(port, V1) as first, coming(port, V2):
            assert is_turned_away(first)
            program.wait_for("inbound=server client=192.0.2.7:51000 .*outcome=evicted")


def two_inbounds(folder: Path, more: str) -> Path:
    config = write(folder, more)
    listen = "listen: [127.0.0.1:0, 127.0.0.1:0]"
    config.write_text(config.read_text().replace("listen: 127.0.0.1:0", listen))
    return config


def test_the_connections_of_a_user_are_counted_over_all_addresses(
    tmp_path: Path, target: socket.socket
) -> None:
    more = f"rules: [allow all]\nusers: {{alice: '{USERS['alice']}'}}\nlimits: {{per_user: 1}}"
    with Program("-c", two_inbounds(tmp_path, more)) as program:
        first, second = (
            int(found[1]) for found in program.wait_for(r"local: listening on \S+:(\d+) ", 2)
        )
        asked = login(b"alice", b"secret") + request(target)
        with coming(first, asked) as sock, coming(second, asked) as other:
            answers = {read_exactly(each, 6)[4:] for each in (sock, other)}
        assert answers == {b"\x05\x00", b"\x05\x01"}


def test_a_password_cannot_be_tried_out_at_the_program(tmp_path: Path) -> None:
    users = f"users: {{alice: '{USERS['alice']}'}}"
    with Program("-c", two_inbounds(tmp_path, users)) as program:
        ports = [int(found[1]) for found in program.wait_for(r"local: listening on \S+:(\d+) ", 2)]
        answers: list[bool] = []

        def guess(number: int) -> None:
            answers.append(log_in(ports[number % 2], b"alice", b"guess"))

        assert not in_threads(Throttle.max_failures, guess)
        assert answers == [False] * Throttle.max_failures
        program.wait_for("127.0.0.1: 10 failed logins in 10m, refusing its logins for 10m")
        assert not any(log_in(port, b"alice", b"secret") for port in ports)
        program.wait_for("outcome=auth_refused .*too many failed logins")


# --- gsocks check --to ------------------------------------------------------------------------

BOTH = (
    "rules: [deny private, allow *.example.com user alice, deny all:25, allow all]\n"
    f"users: {{alice: '{USERS['alice']}'}}",
    "keys: {laptop: {file: a.key}, phone: {file: b.key}}\n"
    "rules: [deny loopback, deny all:443 user phone, allow all]",
)


def ask(folder: Path, to: str, *more: str, ends: tuple[str, ...] = BOTH) -> tuple[int, list[str]]:
    done = gsocks("check", "-c", write(folder, *ends), "--to", to, *more)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_check_says_which_rule_decides_at_each_end(tmp_path: Path) -> None:
    assert ask(tmp_path, "8.8.8.8:80") == (
        0,
        [
            "local: 8.8.8.8:80 is allowed: rule 'allow all'",
            "server, key laptop, phone: 8.8.8.8:80 is allowed: rule 'allow all'",
        ],
    )
    assert not (tmp_path / "a.key").exists()


def test_check_ends_with_status_1_where_one_end_denies_it(tmp_path: Path) -> None:
    assert ask(tmp_path, "8.8.8.8:443") == (
        1,
        [
            "local: 8.8.8.8:443 is allowed: rule 'allow all'",
            "server, key laptop: 8.8.8.8:443 is allowed: rule 'allow all'",
            "server, key phone: 8.8.8.8:443 is denied: rule 'deny all:443 user phone'",
        ],
    )
    status, lines = ask(tmp_path, "8.8.8.8:25")
    assert status == 1
    assert lines[0] == "local: 8.8.8.8:25 is denied: rule 'deny all:25'"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("[deny private, deny metadata, allow all]", True),
        ("[deny private, deny self, allow all]", False),
        ("[deny private, allow self, allow all]", False),
        ("[allow all]", False),
        ("[deny private, allow *.example.com]", False),
    ],
)
def test_check_tells_of_rules_that_forget_this_machine(
    tmp_path: Path, rules: str, told: bool
) -> None:
    done = gsocks("check", "-c", write(tmp_path, f"rules: {rules}"))
    assert done.returncode == 0
    line = "local: rules allow this machine's public addresses ('deny self' denies them)"
    assert (line in done.stdout.splitlines()) is told


def test_check_asks_for_a_user_or_a_key(tmp_path: Path) -> None:
    status, lines = ask(tmp_path, "8.8.8.8:443", "--user", "laptop")
    assert status == 0
    assert lines[1:] == ["server, key laptop: 8.8.8.8:443 is allowed: rule 'allow all'"]
    status, lines = ask(tmp_path, "127.0.0.1:80", "--user", "alice")
    assert status == 1
    assert lines[0] == "local, user alice: 127.0.0.1:80 is denied: rule 'deny private'"


def test_check_looks_a_name_up_where_its_addresses_decide(tmp_path: Path) -> None:
    ends = ("rules: [deny 127.0.0.0/8, allow all]",)
    status, lines = ask(tmp_path, "localhost:80", ends=ends)
    assert lines[0] == "local: localhost:80 is undecided: its addresses decide"
    assert "local: localhost:80 at 127.0.0.1 is denied: rule 'deny 127.0.0.0/8'" in lines
    # ::1 may be another address of it
    assert status == (0 if "is allowed" in "".join(lines) else 1)


def test_check_knows_localhost_without_a_look_up(tmp_path: Path) -> None:
    for host in ("localhost:80", "www.localhost:80"):
        assert ask(tmp_path, host, ends=BOTH[:1]) == (
            1,
            [f"local: {host} is denied: rule 'deny private'"],
        )


def test_check_resolves_no_name_where_the_exit_does(tmp_path: Path) -> None:
    ends = (BOTH[0] + "\nexits: ['socks5://127.0.0.1:1']",)
    assert ask(tmp_path, "nothing.invalid:80", ends=ends) == (
        0,
        [
            "local: nothing.invalid:80 is undecided: its addresses decide",
            "local: nothing.invalid:80 is resolved behind the exit,"
            " whose own rules check its addresses",
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--to", "example.com"), "--to: 'example.com' is not host:port"),
        (("--to", "127.1:80"), "--to: '127.1' is not a host name"),
        (
            ("--to", "example.com:80", "--user", "alcie"),
            "no user and no key is called 'alcie' (did you mean alice?)",
        ),
        (("--user", "alice"), "--user needs --to"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line_and_status_2(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = gsocks("check", "-c", write(tmp_path, *BOTH), *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
