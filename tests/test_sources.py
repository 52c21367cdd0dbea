"""Lists of exits that are kept in files."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from program import Program, run, web_server

from gsocks.errors import ConfigError
from gsocks.rotation.sources import read_exit_list


def test_a_url_a_line_is_an_exit_each_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# ours\n\nsocks5://10.0.0.7\n  http://10.0.0.8:3128\nsocks5://10.0.0.7:1080\n")
    labels = [spec.label for spec in read_exit_list(path)]
    assert labels == ["socks5://10.0.0.7:1080", "http://10.0.0.8:3128"]


def test_a_bad_line_is_named_by_its_number_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("socks5://10.0.0.7\nsocks5://user:secret@\nsocks5://10.0.0.9\n")
    assert len(read_exit_list(path)) == 2
    assert "list.txt: line 2 left out" in caplog.text
    assert "secret" not in caplog.text


def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.txt: No such file"):
        read_exit_list(tmp_path / "no.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_exit_list(tmp_path / "bytes.txt")


def test_the_program_goes_out_by_the_exits_of_a_list(tmp_path: Path) -> None:
    behind = tmp_path / "behind.yaml"
    behind.write_text("local: {listen: '127.0.0.1:0', rules: [allow all]}")
    with web_server() as web, Program("-c", behind) as proxy, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and not listening: the first exit of the list is dead
        dead = closed.getsockname()[1]
        (tmp_path / "list.txt").write_text(
            f"socks5://127.0.0.1:{dead}\nsocks5://127.0.0.1:{proxy.port()}\n"
        )
        front = tmp_path / "front.yaml"
        front.write_text(
            "local: {listen: '127.0.0.1:0', rules: [allow all], exit_sources: [{file: list.txt}]}"
        )
        with Program("-c", front) as program:
            for word in ("one", "two"):
                url = f"http://127.0.0.1:{web}/text/{word}"
                done = run("curl", "-sS", "--socks5", f"127.0.0.1:{program.port()}", url)
                assert done.stdout == word, done.stderr
            program.wait_for(f"exit=socks5://127.0.0.1:{proxy.port()} .*outcome=ok", times=2)
