"""Health and checks as they stand in a config, by a running program."""

from __future__ import annotations

from pathlib import Path

from tests.support.ports import free_port
from tests.support.program import Program, run, web_server


def config(folder: Path, more: str) -> Path:
    path = folder / "local.yaml"
    path.write_text(
        "local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n"
        f"  exits: [{{url: 'socks5://127.0.0.1:{free_port()}', name: dead}}, direct]\n{more}"
    )
    return path


def test_an_exit_goes_out_by_as_many_failures_as_the_config_says(tmp_path: Path) -> None:
    path = config(tmp_path, "  health: {failures: 1, base: 1h}\n")
    with web_server() as web, Program("-c", path) as program:
        proxy = f"127.0.0.1:{program.port()}"
        for _ in range(2):
            page = run("curl", "-sS", "--socks5-hostname", proxy, f"http://127.0.0.1:{web}/text/hi")
            assert page.stdout == "hi"
        program.wait_for(r"exit dead \(socks5://.*\) is ejected for [0-9]+ s: .*Connection refused")


def test_the_checks_of_the_config_find_an_exit_that_is_down(tmp_path: Path) -> None:
    with web_server() as web:
        url = f"http://127.0.0.1:{web}/text/hi"
        path = config(tmp_path, f"  checks: {{urls: ['{url}'], interval: 100ms}}\n")
        with Program("-c", path) as program:
            program.wait_for(r"exit dead \(socks5://.*\) is down: .*Connection refused")
