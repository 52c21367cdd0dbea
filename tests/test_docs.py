"""What the documents say can be done, can be done."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gsocks
from gsocks import config, settings
from gsocks.access.rules import DEFAULT_RULES
from gsocks.crypto import Key
from gsocks.rotation import sources
from gsocks.rotation.lists import ListOptions, parse_list
from tests.support.program import ROOT, Program, run, web_server
from tests.support.waiting import TOO_LONG

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{p.name}-{n}")
        for p in DOCUMENTS
        for n, text in enumerate(blocks(p, "yaml"))
    ],
)
def test_every_config_in_the_documents_loads(text: str, tmp_path: Path) -> None:
    for name in (
        "gsocks.key",
        "laptop.key",
        "phone.key",
        "users.txt",
        "proxies.txt",
        "token.txt",
        "users",
        "exits.txt",
        "valkey.password",
    ):
        (tmp_path / name).write_text(Key.generate().text())
    for name in ("server.pem", "server.key", "ca.pem"):
        (tmp_path / name).touch()
    config.parse(text, tmp_path)


def test_every_link_in_the_documents_leads_somewhere() -> None:
    others = [ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for path in [*DOCUMENTS, *others]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_is_under_two_screens_and_names_every_key_of_the_config() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    keys = set(config.Local.__struct_fields__) | set(config.Server.__struct_fields__)
    for key in keys - {"allow_anonymous", "exit_sources", "rotate"} | {"workers", "log"}:
        assert f"`{key}`" in text, key


#: extras for those who work on gsocks
_OF_DEVELOPERS = {"bench", "clients", "contract", "docs", "fuzz", "lint", "mutation"}
_OF_DEVELOPERS |= {"scraping", "test"}


def test_the_readme_and_the_table_name_every_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]", 1)[1]
    extras = re.findall(r"^([a-z]+) = \[", text.split("\n[", 1)[0], re.MULTILINE)
    wanted = sorted(set(extras) - _OF_DEVELOPERS)
    told = re.search(r"Extras\]\(.*`: ([\w, ]+)\.", (ROOT / "README.md").read_text())
    assert told is not None
    assert told[1].split(", ") == wanted
    table = (ROOT / "docs" / "operations.md").read_text().split("## Extras", 1)[1]
    rows = re.findall(r"^\| (`.*?) \|", table.split("\n## ", 1)[0], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == wanted


def test_the_reference_names_every_key_of_the_config() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    structs = (config.Config, config.Log, config.Local, config.Server, settings.Limits)
    for struct in (*structs, settings.Timeouts, settings.PoolSettings):
        for key in struct.__struct_fields__:
            assert key in text, key
    for key in sources.KEYS:
        assert f" {key}: " in text, key


def test_every_form_of_a_line_in_the_reference_is_read() -> None:
    text = (ROOT / "docs" / "config.md").read_text().split("A line is an exit;", 1)[1]
    forms = re.findall(r"^ {4}(.*)$", text.split("The scheme of a line", 1)[0], re.MULTILINE)
    found = parse_list("\n".join(forms).encode(), ListOptions())
    assert len(forms) == 8
    assert not found.skipped
    assert found.duplicates == 4  # four spell the same one, and one is the first with options


def test_the_readme_tells_the_rules_that_apply_where_none_are_given() -> None:
    told = re.search(r"`rules` .*`\[(.*)\]`", (ROOT / "README.md").read_text())
    assert told is not None
    assert told[1].split(", ") == [str(rule) for rule in DEFAULT_RULES.rules]


def test_the_readmes_python_runs() -> None:
    text = (ROOT / "README.md").read_text().split("## In a gevent program", 1)[1]
    code = re.findall(r"(?:^ {4}.*\n|^\n)+", text, re.MULTILINE)[0]
    code = "\n".join(line[4:] for line in code.splitlines())
    done = run(sys.executable, "-c", code)
    assert re.fullmatch(r"127\.0\.0\.1:\d+\n", done.stdout), done.stderr


def test_the_readmes_two_machines_work_as_written(tmp_path: Path) -> None:
    """With two folders for the machines, and loopback for the network between them."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^ {4}(server|laptop)\$ (.*)$", text, re.MULTILINE)
    commands = {
        machine: [line for m, line in lines if m == machine] for machine in ("server", "laptop")
    }
    assert all(lines[-1].startswith("gsocks -c ") for lines in commands.values())

    def prepare(machine: str, change: dict[str, str]) -> Path:
        folder = tmp_path / machine
        folder.mkdir()
        for command in commands[machine][:-1]:
            line = command.split("#")[0].replace(
                "gsocks keygen", f"{sys.executable} -m gsocks keygen"
            )
            for old, new in change.items():
                line = line.replace(old, new)
            subprocess.run(
                ["bash", "-c", line], cwd=folder, check=True, timeout=TOO_LONG, env=_with_path()
            )
        return folder

    allow = {"0.0.0.0:8388": "127.0.0.1:0", "keys: {me": "rules: [allow all], keys: {me"}
    server = prepare("server", allow)
    with web_server() as web, Program("-c", server / "server.yaml") as far:
        port = far.port("server")
        near = {
            "SERVER:8388": f"127.0.0.1:{port}",
            "127.0.0.1:1080": "127.0.0.1:0",
            "exits:": "rules: [allow all], exits:",
        }
        laptop = prepare("laptop", near)
        (laptop / "gsocks.key").write_text((server / "gsocks.key").read_text())
        with Program("-c", laptop / "local.yaml") as program:
            proxy = f"127.0.0.1:{program.port()}"
            url = f"http://127.0.0.1:{web}/text/there"
            assert run("curl", "-sS", "--socks5-hostname", proxy, url).stdout == "there"


def test_the_readmes_rotating_proxy_works_as_written(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    make, start, ask = re.findall(r"^ {4}scraper\$ (.*)$", text, re.MULTILINE)
    assert start == "gsocks -c gateway.yaml"
    make = make.replace("127.0.0.1:1080", "127.0.0.1:0").replace(
        "rotate:", "rules: [allow all], rotate:"
    )
    with (
        web_server() as web,
        Program("-c", _direct_http(tmp_path)) as upstream,
    ):
        (tmp_path / "proxies.txt").write_text(f"127.0.0.1:{upstream.port()}:u:p country=de\n")
        subprocess.run(["bash", "-c", make], cwd=tmp_path, check=True, timeout=TOO_LONG)
        with Program("-c", tmp_path / "gateway.yaml") as program:
            line = ask.replace(":1080", f":{program.port()}")
            line = line.replace("https://example.com/", f"http://127.0.0.1:{web}/text/there")
            assert run("bash", "-c", line.replace("curl", "curl -sS")).stdout == "there"
            program.wait_for(r"session=cart17 .*exit=http://u:\*\*\*@127\.0\.0\.1")


def _direct_http(folder: Path) -> Path:
    """The config of a proxy that stands for a provider's."""
    path = folder / "upstream.yaml"
    path.write_text("local: {listen: '127.0.0.1:0', rules: [allow all]}")
    return path


def _with_path() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_embedding_example_runs() -> None:
    done = run(sys.executable, ROOT / "examples" / "embedded.py")
    assert re.fullmatch(r"hello from the inside\n\d+ bytes went .*\n", done.stdout), done.stderr


def test_the_api_reference_has_all_that_the_package_offers() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"auto(?:class|exception):: [a-z_.]+\.(\w+)", page))
    assert documented == set(gsocks.__all__)
