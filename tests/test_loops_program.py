"""Exits that are listeners of their own config: refused by ``gsocks check`` and at a start."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.program import Program, gsocks, run, web_server
from tests.support.waiting import eventually

LOCAL = """
local:
  listen: "{listen}"
  allow_anonymous: true
  rules: [allow all]
  {more}
"""

SERVER = """
server:
  listen: 127.0.0.1:{server}
  keys: {{default: {{file: gsocks.key}}}}
  exits: ["http://127.0.0.1:{local}"]
"""


def write(folder: Path, text: str) -> Path:
    config = folder / "config.yaml"
    config.write_text(text)
    config.chmod(0o600)  # it may have passwords
    return config


def refusal(config: Path) -> str:
    """What ``check`` says, which a start says too."""
    done, start = gsocks("check", "-c", config), gsocks("-c", config)
    assert done.returncode == start.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == start.stderr.splitlines()[-1]
    return line


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_an_exit_that_is_a_listener_of_its_section_is_refused(
    tmp_path: Path, listen: str, host: str
) -> None:
    port = free_port()
    more = f'exits: [direct, "http://joe:secret@{host}:{port}"]'
    said = refusal(write(tmp_path, LOCAL.format(listen=f"{listen}:{port}", more=more)))
    assert f"local.exits[1]: http://joe:***@{host}:{port} is a listener of this config" in said


def test_a_way_through_an_own_listener_is_refused(tmp_path: Path) -> None:
    port = free_port()
    more = f'exits: [{{url: "http://9.9.9.9:80", via: "socks5://127.0.0.1:{port}"}}]'
    said = refusal(write(tmp_path, LOCAL.format(listen=f"127.0.0.1:{port}", more=more)))
    assert "local.exits[0]: http://9.9.9.9:80" in said


def test_two_sections_that_are_each_others_exits_are_refused(tmp_path: Path) -> None:
    local, server = free_port(), free_port()
    more = f'exits: [{{url: "gsocks://127.0.0.1:{server}", key_file: gsocks.key}}]'
    text = LOCAL.format(listen=f"127.0.0.1:{local}", more=more)
    said = refusal(write(tmp_path, text + SERVER.format(local=local, server=server)))
    assert f"server.exits[0]: http://127.0.0.1:{local} is a listener of this config" in said


def test_an_own_listener_in_a_list_is_named_by_check_and_refused_by_a_reload(
    tmp_path: Path,
) -> None:
    port = free_port()
    (tmp_path / "list.txt").write_text(f"9.9.9.9:80\n127.0.0.1:{port}\n")
    good = LOCAL.format(listen=f"127.0.0.1:{port}", more="exit_sources: [{file: list.txt}]")
    config = write(tmp_path, good)
    done = gsocks("check", "-c", config)
    assert done.returncode == 0
    expected = f"list.txt: http://127.0.0.1:{port} is a listener of this config, and is never used"
    assert expected in done.stdout
    with Program("-c", config) as program:
        program.port()
        write(tmp_path, good + f'  exits: ["socks5://localhost:{port}"]\n')
        program.signal(signal.SIGHUP)
        program.wait_for("not reloaded, the previous config stays: local.exits.0.: socks5")


def test_an_own_listener_in_a_list_is_named_at_a_start_and_by_exits_which_asks_the_others(
    tmp_path: Path,
) -> None:
    port, closed = free_port(), free_port()
    (tmp_path / "list.txt").write_text(f"127.0.0.1:{closed}\n127.0.0.1:{port}\n")
    more = "exit_sources: [{file: list.txt}]"
    config = write(tmp_path, LOCAL.format(listen=f"127.0.0.1:{port}", more=more))
    said = f"local: listeners of this config are never used as exits: http://127.0.0.1:{port}"
    with Program("-c", config) as program:
        program.port()
        program.wait_for(re.escape(said))
        done = gsocks("exits", "-c", config)
        assert "outcome=" not in program.log
    assert said in done.stderr
    assert "0 of 1 exits work" in done.stderr
    assert f":{port}" not in done.stdout


def test_one_request_for_an_own_listener_of_a_list_opens_one_connection(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "list.txt").write_text(
        "".join(f"http://u{n}:p@localhost:{port}\n" for n in range(8))
    )
    more = "exit_sources: [{file: list.txt}]"
    config = write(tmp_path, LOCAL.format(listen=f"127.0.0.1:{port}", more=more))
    with Program("-c", config) as program:
        program.port()
        done = run("curl", "-sS", "--max-time", "20", "-x", f"http://127.0.0.1:{port}",
                   "http://9.9.9.9/", "-w", "%{http_code}", "-o", "/dev/null")  # fmt: skip
        assert done.stdout == "508"
        program.wait_for("gsocks.access: .*outcome=loop")
        assert program.log.count("gsocks.access:") == 1


# --- by a way that no address shows -----------------------------------------------------------


@contextmanager
def each_others_exits(folder: Path, exits: str = "") -> Iterator[tuple[Program, Program, int]]:
    """Two gateways; and a port of the first one."""
    here, there = free_port(), free_port()
    with ExitStack() as stack:
        programs = []
        for name, (listen, exit_) in {"a": (here, there), "b": (there, here)}.items():
            more = f'exits: ["socks5://127.0.0.1:{exit_}"{exits}]\n  tries: 2'
            config = folder / f"{name}.yaml"
            config.write_text(LOCAL.format(listen=f"127.0.0.1:{listen}", more=more))
            programs.append(stack.enter_context(Program("-c", config)))
            programs[-1].port()
        yield programs[0], programs[1], here


def test_two_gateways_that_are_each_others_exits_notice_it(tmp_path: Path) -> None:
    with each_others_exits(tmp_path) as (near, far, port):
        done = run("curl", "-sS", "--max-time", "60", "--socks5-hostname", f"127.0.0.1:{port}",
                   "http://site.example/")  # fmt: skip
        assert done.returncode == 97  # refused by the proxy
        eventually(lambda: "leads back to this gateway, and is not used" in near.log + far.log)
        begun = sum(program.log.count("gsocks.access:") for program in (near, far))
        assert begun < 400
        # and does not begin again
        run("curl", "-sS", "--max-time", "60", "--socks5-hostname", f"127.0.0.1:{port}",
            "http://site.example/")  # fmt: skip
        assert sum(program.log.count("gsocks.access:") for program in (near, far)) < begun + 100


def test_gateways_that_have_another_exit_each_serve_all_the_same(tmp_path: Path) -> None:
    with web_server() as web, each_others_exits(tmp_path, ", direct") as (_, _, port):
        for _ in range(6):
            done = run("curl", "-sS", "--max-time", "60", "-x", f"http://127.0.0.1:{port}", "-p",
                       f"http://127.0.0.1:{web}/text/hello")  # fmt: skip
            assert done.stdout == "hello"
