"""The program's commands, signals and workers, in what no version of Python makes different."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gsocks.access.users import Users
from gsocks.crypto import Key
from tests.support.one_process import Held, curl, workers_of, write_config
from tests.support.program import (
    ROOT,
    Program,
    both_programs,
    gsocks,
    kill,
    web_server,
)
from tests.support.waiting import TOO_LONG


def test_the_key_is_kept_from_start_to_start(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    with Program("-c", path) as program:
        program.port()
        first = (tmp_path / "gsocks.key").read_text()
    with Program("-c", path) as program:
        program.port()
    assert (tmp_path / "gsocks.key").read_text() == first


def test_private_addresses_are_refused_unless_rules_open_them(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace("  rules: [allow all]\n", ""))
    with web_server() as web, Program("-c", path) as program:
        refused = curl(program.port(), web)
        assert refused.returncode == 97
        assert "(2)" in refused.stderr  # REP 02: not allowed by ruleset
        program.wait_for("outcome=forbidden .*rule 'deny private'")


def test_with_fast_open_a_refused_destination_is_a_reset(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace("local:\n", "local:\n  fast_open: true\n"))
    with web_server() as web, Program("-c", path) as program:
        assert curl(program.port(), web).stdout == "hello"
        assert curl(program.port(), 1).returncode == 56  # curl: failure in receiving
        program.wait_for("inbound=local .*outcome=refused ")


def test_each_end_writes_one_access_line_for_a_connection_when_it_ends(tmp_path: Path) -> None:
    with web_server() as web, both_programs(tmp_path) as (near, far):
        assert curl(near.port(), web, "word").stdout == "word"
        line = near.wait_for(r"gsocks\.access: (.*)")[0][1]
        fields = dict(pair.split("=", 1) for pair in line.split(" "))
        assert fields["inbound"] == "local"
        assert fields["dest"] == f"127.0.0.1:{web}"
        assert fields["exit"] == f"gsocks://127.0.0.1:{far.port('server')}"
        assert fields["outcome"] == "ok"
        assert fields["user"] == "-"
        assert int(fields["up"]) > 0
        assert int(fields["down"]) > 0
        assert re.fullmatch(r"127\.0\.0\.1:\d+", fields["client"])
        assert float(fields["seconds"]) >= 0
        assert "user=default" in far.wait_for(r"gsocks\.access: (.*)")[0][1]


def test_access_lines_can_be_turned_off(tmp_path: Path) -> None:
    config = write_config(tmp_path, "log: {access: false}\n")
    with web_server() as web, Program("-c", config) as program:
        assert curl(program.port(), web).stdout == "hello"
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    assert "gsocks.access" not in program.log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local: {lisen: 127.0.0.1:0}", "local.lisen: unknown key (did you mean listen?)"),
        ("local: {listen: 127.0.0.1:0, timeouts: {idle: soon}}", "local.timeouts.idle: 'soon'"),
        ("local: [", "c.yaml: line "),
        ("local: {listen: 127.0.0.1:0, exits: [sock5://10.0.0.7]}", "local.exits[0]"),
        ("local: {listen: 0.0.0.0:0}", "allow_anonymous"),
        ("local: {listen: 127.0.0.1:0, rules: [alow all]}", "local.rules[0]"),
        ("local: {listen: 192.0.2.1:1080, allow_anonymous: true}", "no such address"),
        ("server: {listen: 127.0.0.1:0, keys: {a: {file: no/where.key}}}", "no/where.key"),
        (
            "local: {listen: 127.0.0.1:0, exits: [{url: 'gsocks://h:1', key_file: no.key}]}",
            "no.key: no such file",
        ),
    ],
)
def test_a_mistake_in_the_config_is_one_line_and_status_2(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    done = gsocks("-c", path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_an_address_in_use_is_reported_with_status_2(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    with Program("-c", path) as program:
        program.port()
        again = gsocks("-c", path)
    assert again.returncode == 2
    assert "address already in use" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    done = gsocks("-c", tmp_path / "nosuch.yaml")
    assert done.returncode == 2
    assert "nosuch.yaml" in done.stderr


def test_keygen_prints_a_new_key_each_time() -> None:
    first, second = gsocks("keygen").stdout, gsocks("keygen").stdout
    assert len(Key.parse(first).raw()) == 32
    assert first != second


def test_keygen_keeps_a_key_in_a_file_and_never_writes_over_one(tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    assert gsocks("keygen", path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    again = gsocks("keygen", path)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert path.read_text() == kept


def test_keygen_without_a_place_for_the_file_is_one_line(tmp_path: Path) -> None:
    done = gsocks("keygen", tmp_path / "no" / "where.key")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_check_names_a_key_that_the_first_start_could_not_create(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("server: {listen: '127.0.0.1:0', keys: {me: {file: no/me.key}}}")
    done = gsocks("check", "-c", path)
    assert done.returncode == 2
    where = tmp_path / "no" / "me.key"
    assert f"server.keys: {where} can't be created: there is no such folder" in done.stderr


def test_check_reports_the_exit_selectors_of_listeners(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "local:\n  listen: [127.0.0.1:1080, {address: 127.0.0.1:1081, session: one, country: DE}]\n"
        "  sessions: {idle: 5m, by_client: true}\n"
    )
    told = gsocks("check", "-c", path).stdout.splitlines()
    where = "127.0.0.1:1080, 127.0.0.1:1081 (session one, country de)"
    assert told[:2] == [
        f"local: listens on {where}, exits: direct",
        "local: a session keeps its exit for 1d, or until it is idle for 5m; without one, a"
        " client's address is its session",
    ]


def test_check_takes_the_config_before_or_behind_its_name(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert gsocks("-c", path, "check").stdout == gsocks("check", "-c", path).stdout


def test_check_names_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("local: {listen: nowhere}")
    done = gsocks("check", "-c", path)
    assert done.returncode == 2
    assert "local.listen" in done.stderr


def test_passwd_hashes_whatever_bytes_a_client_may_send() -> None:
    for said in (b"\xff\xfe\n", b"\xff\xfe\r\n", b"\xff\xfe"):
        done = subprocess.run(
            [sys.executable, "-m", "gsocks", "passwd"],
            input=said,
            capture_output=True,
            cwd=ROOT,
            check=True,
        )
        assert Users({"alice": done.stdout.decode().strip()}).verify("alice", b"\xff\xfe")


def test_passwd_without_an_answer_is_refused() -> None:
    shown, ended = answer_on_a_terminal(["passwd"], ["\4"])  # Ctrl-D
    assert os.waitstatus_to_exitcode(ended) == 2
    assert shown.splitlines()[-1] == "gsocks: no password was given"


def test_passwd_takes_no_empty_password() -> None:
    assert gsocks("passwd", stdin="\n").returncode == 2


def test_passwd_asks_twice_on_a_terminal_and_shows_nothing() -> None:
    for second, status in (("secret", 0), ("secrte", 2)):
        shown, ended = answer_on_a_terminal(["passwd"], ["secret", second])
        assert os.waitstatus_to_exitcode(ended) == status
        assert "secr" not in shown
        assert ("$argon2id$" in shown) == (status == 0)


def answer_on_a_terminal(arguments: list[str], answers: list[str]) -> tuple[str, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "gsocks", *arguments])
    shown = b""
    asked = 0
    timer = threading.Timer(TOO_LONG, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        while True:
            try:
                data = os.read(terminal, 1024)
            except OSError:
                break  # the other side of a terminal is closed so
            if not data:
                break
            shown += data
            if shown.count(b": ") > asked and asked < len(answers):
                os.write(terminal, answers[asked].encode() + b"\n")
                asked += 1
    finally:
        timer.cancel()
        os.close(terminal)
    return shown.decode(), os.waitpid(pid, 0)[1]


def test_the_users_of_the_config_can_log_in_and_others_can_not(tmp_path: Path) -> None:
    hashed = gsocks("passwd", stdin="secret\n").stdout.strip()
    users = f"  users: {{alice: '{hashed}'}}\n"
    with web_server() as web, both_programs(tmp_path, local=users) as (near, _):
        port = near.port()
        welcome = curl(port, web, "in", "--proxy-user", "alice:secret")
        assert welcome.stdout == "in", welcome.stderr
        assert curl(port, web, "in", "--proxy-user", "alice:wrong").returncode == 97
        assert curl(port, web, "in").returncode == 97
        near.wait_for("user=alice .*outcome=ok")
        near.wait_for("outcome=auth_failed", times=2)
        assert "secret" not in near.log
        assert "wrong" not in near.log
        assert hashed not in near.log


def test_a_second_sigterm_ends_at_once_and_resets_what_is_open(tmp_path: Path) -> None:
    with Program("-c", write_config(tmp_path)) as program:
        held = Held(program.port())
        program.signal(signal.SIGTERM)
        program.wait_for("shutting down")
        program.signal(signal.SIGTERM)
        assert program.end() == 0
        with pytest.raises(ConnectionResetError):
            held.client.recv(1)
        held.close()


def test_drain_has_a_bound(tmp_path: Path) -> None:
    drain = "  timeouts: {drain: 200ms}\n"
    with both_programs(tmp_path, local=drain) as (near, _):
        held = Held(near.port())
        near.signal(signal.SIGTERM)
        assert near.end() == 0
        held.close()


def test_sighup_reads_users_and_keys_again_without_touching_a_connection(tmp_path: Path) -> None:
    old, new = (gsocks("passwd", stdin=f"{word}\n").stdout.strip() for word in ("old", "new"))
    users = f"  users: {{alice: '{old}'}}\n"
    users += "  timeouts: {connect: 500ms}\n"
    with web_server() as web, both_programs(tmp_path, local=users) as (near, far):
        config = tmp_path / "local.yaml"
        config.write_text(config.read_text().replace(old, new))
        assert curl(near.port(), web, "a", "--proxy-user", "alice:old").stdout == "a"
        near.signal(signal.SIGHUP)
        near.wait_for("reloaded: ")
        assert curl(near.port(), web, "b", "--proxy-user", "alice:old").returncode == 97
        assert curl(near.port(), web, "c", "--proxy-user", "alice:new").stdout == "c"
        # another key at the server: local's is refused from now on
        (tmp_path / "gsocks.key").write_text(Key.generate().text())
        far.signal(signal.SIGHUP)
        far.wait_for("reloaded: ")
        assert curl(near.port(), web, "d", "--proxy-user", "alice:new").returncode == 97


def test_a_worker_that_is_killed_takes_no_other_with_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, "workers: 2\n")
    with Program("-c", config) as program:
        program.wait_for("local: listening on ", times=2)
        held = [Held(program.port()) for _ in range(6)]
        os.kill(workers_of(program)[0], signal.SIGKILL)
        program.wait_for("local: listening on ", times=3)
        program.signal(signal.SIGINT)
        assert program.end() == 0
        for one in held:
            one.close()


def test_a_worker_in_a_dead_ones_place_knows_the_users_of_now(tmp_path: Path) -> None:
    old, new = (gsocks("passwd", stdin=f"{word}\n").stdout.strip() for word in ("old", "new"))
    config = tmp_path / "c.yaml"
    text = "workers: 2\nlocal: {{listen: '127.0.0.1:0', rules: [allow all], users: {{al: '{}'}}}}"
    config.write_text(text.format(old))
    with web_server() as web, Program("-c", config) as program:
        program.wait_for("local: listening on ", times=2)
        config.write_text(text.format(new))
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        for number, pid in enumerate(workers_of(program), start=3):
            os.kill(pid, signal.SIGKILL)
            program.wait_for("local: listening on ", times=number)
        assert curl(program.port(), web, "a", "--proxy-user", "al:old").returncode == 97
        assert curl(program.port(), web, "b", "--proxy-user", "al:new").stdout == "b"


def replace_workers(program: Program) -> None:
    """Kill each of two workers, and wait until the others that take their places listen."""
    for number, pid in enumerate(workers_of(program), start=3):
        os.kill(pid, signal.SIGKILL)
        program.wait_for(": listening on ", times=number)


@pytest.mark.parametrize("broken", ["local: {", None, "server: {}"])
def test_a_worker_in_a_dead_ones_place_serves_by_the_last_good_config(
    tmp_path: Path, broken: str | None
) -> None:
    old, new = (gsocks("passwd", stdin=f"{word}\n").stdout.strip() for word in ("old", "new"))
    config = tmp_path / "c.yaml"
    text = "workers: 2\nlocal: {{listen: '127.0.0.1:0', rules: [allow all], users: {}}}\n"
    config.write_text(text.format({"al": old, "revoked": old}))
    with web_server() as web, Program("-c", config) as program:
        program.wait_for("local: listening on ", times=2)
        config.write_text(text.format({"al": new}))
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        if broken is None:
            config.unlink()
        else:
            config.write_text(broken)
        # at this one all keep what they have, and it is reported once
        program.signal(signal.SIGHUP)
        program.wait_for("not reloaded, the previous config stays: ")
        replace_workers(program)
        for user, status in (("revoked:old", 97), ("al:old", 97), ("al:new", 0)):
            assert curl(program.port(), web, "a", "--proxy-user", user).returncode == status
        assert program.log.count("not reloaded") == 1


def test_a_key_that_was_revoked_stays_so_in_a_worker_that_is_started_again(tmp_path: Path) -> None:
    old, new = Key.generate().text(), Key.generate().text()
    config = tmp_path / "server.yaml"
    (tmp_path / "new.key").write_text(new)
    (tmp_path / "new.key").chmod(0o600)
    text = "workers: 2\nserver: {{listen: '127.0.0.1:0', rules: [allow all], keys: {{one: {}}}}}\n"
    config.write_text(text.format(f"'{old}'"))
    with web_server() as web, Program("-c", config) as program:
        program.wait_for("server: listening on ", times=2)
        config.write_text(text.format("{file: new.key}"))
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        config.write_text("server: {")
        (tmp_path / "new.key").unlink()
        replace_workers(program)
        for key, status in ((old, 97), (new, 0)):
            local = tmp_path / "local.yaml"
            local.write_text(
                f"local: {{listen: '127.0.0.1:0', timeouts: {{connect: 500ms}}, rules: [allow all],"
                f" exits: ['gsocks://{key}@127.0.0.1:{program.port('server')}']}}\n"
            )
            with Program("-c", local) as near:
                assert curl(near.port(), web).returncode == status


def test_a_reload_tells_which_changes_need_a_restart(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    text = "workers: 2\nlocal: {{listen: '127.0.0.1:0', exits: [{}], limits: {{per_client: {}}}}}\n"
    config.write_text(text.format("direct", 8))
    with Program("-c", config) as program:
        program.wait_for("local: listening on ", times=2)
        config.write_text(text.format("'socks5://127.0.0.1:1'", 8))
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        config.write_text(text.format("direct", 9) + "log: {level: debug}\n")
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=4)
    (said,) = (line for line in program.lines if "restart" in line)
    assert said.endswith("c.yaml: a restart is needed for log.level")


def test_the_lines_of_each_worker_have_its_number(tmp_path: Path) -> None:
    for format_, line in (
        ("text", r" info gsocks \[worker ([01])\]: local: listening on "),
        ("json", r'"logger": "gsocks", "worker": ([01]), "message": "local: listening on '),
    ):
        config = tmp_path / "c.yaml"
        config.write_text(
            f"workers: 2\nlog: {{format: {format_}}}\nlocal: {{listen: '127.0.0.1:0'}}\n"
        )
        with Program("-c", config) as program:
            assert {match[1] for match in program.wait_for(line, times=2)} == {"0", "1"}


def test_a_missing_key_file_is_reported_with_its_place_in_the_config(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    for text, place in (
        (
            "local: {listen: '127.0.0.1:0',"
            " exits: [direct, {url: 'gsocks://a.example:1', key_file: no.key}]}",
            "local.exits[1]",
        ),
        (
            "server: {listen: '127.0.0.1:0', keys: {default: {file: bad.key}}}",
            "server.keys.default",
        ),
    ):
        (tmp_path / "bad.key").write_text("short")
        (tmp_path / "bad.key").chmod(0o600)
        config.write_text(text)
        for command in ((), ("check",)):
            done = gsocks(*command, "-c", config)
            assert done.returncode == 2
            where = re.escape(f"{config}: {place}")
            assert re.fullmatch(rf"gsocks: {where}: \S+\.key: .*\n", done.stderr)


def test_a_warning_about_a_key_file_is_logged_once(tmp_path: Path) -> None:
    with Program("-c", write_config(tmp_path, "workers: 2\n")) as program:
        program.port()
    (tmp_path / "gsocks.key").chmod(0o644)
    with Program("-c", tmp_path / "config.yaml") as program:
        program.wait_for("local: listening on ", times=2)
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
    assert program.log.count("gsocks.key can be read by others") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "--help"), "usage: gsocks check [-h] [-c FILE]"),
        (("exits", "--help"), "usage: gsocks exits [-h] [-c FILE]"),
    ],
)
def test_the_usage_of_a_command_is_its_own(arguments: tuple[str, ...], said: str) -> None:
    assert said in gsocks(*arguments).stdout


def test_a_warning_about_a_config_is_told_as_all_else_is(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("local: {listen: '127.0.0.1:0', exits: ['socks5://u:p@127.0.0.1:9']}")
    config.chmod(0o644)
    done = gsocks("check", "-c", config)
    assert done.returncode == 0
    assert done.stderr == (
        f"gsocks: {config} has secrets and can be read by others (chmod 600 mends it)\n"
    )


def test_what_is_logged_stands_in_the_log_once(tmp_path: Path) -> None:
    exit_ = "socks5://u:p@127.0.0.1:9"
    with Program("local", "--listen", "127.0.0.1:0", "--exit", exit_, cwd=tmp_path) as program:
        program.port()
        program.signal(signal.SIGTERM)
        program.end()
    assert program.log.count("local: listening on ") == 1
    assert not [line for line in program.lines if line.startswith("gsocks: ")]


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with Program("-c", write_config(tmp_path, "workers: 2\n")) as program:
        program.wait_for("local: listening on ", times=2)
        port = program.port()
        descriptors = [os.pidfd_open(pid) for pid in workers_of(program)]
        kill(program)
        for descriptor in descriptors:
            signal_when_it_ends(descriptor)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG)


def signal_when_it_ends(descriptor: int) -> None:
    import select

    ready, _, _ = select.select([descriptor], [], [], TOO_LONG)
    os.close(descriptor)
    assert ready, "it never ended"


@pytest.mark.parametrize("arguments", [["keygen"], ["init", "-o", "-"], ["help"]])
def test_output_on_a_full_disk_is_one_line_and_a_status(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gsocks", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=TOO_LONG,
        )
    assert done.returncode == 2
    assert done.stderr == b"gsocks: the output can't be written: No space left on device\n"


def test_a_closed_output_is_no_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "gsocks", "init", "-o", "-"],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=TOO_LONG,
    )
    assert (done.returncode, done.stderr) == (0, b"")
