"""gsocks requests, top, explain and report, over files that were written before."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gsocks.cli.history_report import provider_of
from gsocks.cli.requests import story
from gsocks.history.cells import ALL, ALL_PLACES
from gsocks.history.counter_file import CounterFile
from gsocks.history.request_file import RequestFile
from gsocks.history.requests import TryRow
from gsocks.history.series import ExitInfo
from gsocks.main import main
from tests.support.history_rows import MB, row

HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state file with history beside it; it need not exist itself."""
    now = time.time()
    requests = RequestFile(tmp_path / "s-requests", MB)
    tries = (TryRow("paris-1", "timed_out", "too slow", 0.5),)
    requests.add(
        [
            row(time=now - 7200, id="old"),
            row(time=now - 60, id="c1-1", tries=tries, choice="round_robin"),
            row(time=now - 30, id="c1-2", outcome="refused", detail="no one there", connect=None,
                first_byte=None, user="=cmd|'/C calc'!A1", dest="[2001:db8::1]:80"),
            row(time=now - 10, id="c1-3", exit=HOSTILE, dest=f"{HOSTILE}:80", user=HOSTILE),
        ]
    )  # fmt: skip
    requests.close()
    counters = CounterFile(tmp_path / "s-history")
    hour, minute = int(now) // 3600 * 3600, int(now) // 60 * 60
    cell = [10.0, 2.0, 1e9, 3e9, 0.5, 8.0, 0.8, 8.0, 20.0]
    changes = {
        (step, at, "exit", name): cell
        for step, at in ((60, minute), (3600, hour), (3600, hour - 86400))
        for name in ("local/berlin-1", "local/paris-1", f"local/{HOSTILE}")
    }
    total = {(3600, hour, "total", ALL): [*cell, *[0.0] * (ALL_PLACES - 9)]}
    counters.add(
        {**changes, **total},
        {
            "local/berlin-1": ExitInfo("http://***@gate.oxylabs.io:7777", "de", "fast home", 2.5),
            "local/paris-1": ExitInfo("socks5://203.0.113.5:1080", "fr", "", None),
            f"local/{HOSTILE}": ExitInfo(f"http://{HOSTILE}:1", "", "", None),
        },
    )
    counters.close()
    return str(tmp_path / "s")


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    return capsys.readouterr().out


def test_requests_are_listed_the_oldest_first_and_as_far_back_as_is_asked(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, "requests", "--state", state).splitlines()
    assert [line.split()[1] for line in lines] == ["id", "c1-1", "c1-2", "c1-3"]
    lines = told(capsys, "requests", "--state", state, "--since", "3h", "--limit", "9").splitlines()
    assert [line.split()[1] for line in lines][1] == "old"
    lines = told(capsys, "requests", "--state", state, "--limit", "1").splitlines()
    assert [line.split()[1] for line in lines] == ["id", "c1-3"]


def test_requests_are_filtered(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "requests", "--state", state, "--outcome", "!ok", "--json")
    (found,) = map(json.loads, out.splitlines())
    assert (found["id"], found["outcome"], found["detail"]) == ("c1-2", "refused", "no one there")
    out = told(capsys, "requests", "--state", state, "--exit", "paris-1", "--json")
    (found,) = map(json.loads, out.splitlines())
    assert found["tries"] == [
        {"exit": "paris-1", "why": "timed_out", "detail": "too slow", "seconds": 0.5}
    ]
    assert told(capsys, "requests", "--state", state, "--user", "x", status=1) == ""


def test_csv_has_headings_and_no_formula(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(told(capsys, "requests", "--state", state, "--csv"))))
    assert [each["id"] for each in rows] == ["c1-1", "c1-2", "c1-3"]
    assert rows[0]["tries"] == "paris-1: timed_out"
    assert rows[1]["user"] == "'=cmd|'/C calc'!A1"
    assert rows[1]["connect"] == ""


def test_what_a_client_has_sent_does_not_control_the_terminal(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["requests"], ["explain", "c1-3"], ["top"], ["top", "--by", "dest"]):
        assert "\x1b" not in told(capsys, *arguments, "--state", state)


def test_a_request_is_explained(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    story = told(capsys, "explain", "--state", state, "c1-1")
    assert "candidates: 3 exits of local match, 2 of them ready" in story
    assert "choice: round_robin" in story
    first = "try 1: exit paris-1 (socks5://203.0.113.5:1080) failed after 500.0 ms: timed_out"
    assert first in story
    assert "try 2: exit berlin-1 (http://***@gate.oxylabs.io:7777) connected in 20.0 ms" in story
    assert "seen as 198.51.100.7" in story
    assert "50.0 ms  first byte came back" in story
    assert "1500.0 ms  ended: ok, 10 B up, 100 B down" in story
    assert told(capsys, "explain", "--state", state, "#2") == story
    assert json.loads(told(capsys, "explain", "--state", state, "c1-1", "--json"))[0]["number"] == 2
    failed = told(capsys, "explain", "--state", state, "c1-2")
    assert "exit berlin-1 (http://***@gate.oxylabs.io:7777) did not connect it" in failed
    assert "ended: refused (no one there)" in failed


def test_what_an_exit_has_looked_up_is_answered_and_not_connected() -> None:
    lines = list(story(row(command="resolve", connect=None, first_byte=None), {}))
    assert "  try 1: exit berlin-1 answered" in lines


@pytest.mark.parametrize("which", ["nothing", "#99", "#0"])
def test_a_request_that_was_not_logged_is_not_explained(
    state: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--state", state, which]) == 1
    assert capsys.readouterr().err == f"no request {which} was logged\n"


def test_top_lists_the_busiest(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "top", "--state", state).splitlines()
    assert lines[0].split() == ["exit", "tries", "failed", "up", "down", "connect", "ms"]
    busiest = "local/<script>alert(1)</script>\\x1b[2J 10 2 1 GB 3 GB 62"
    assert lines[1].split() == busiest.split()
    found = json.loads(told(capsys, "top", "--state", state, "--by", "dest", "--json"))
    names = {each["name"]: each["failed"] for each in found}
    assert (names["www.example.com"], names["2001:db8::1"]) == (0, 1)


def test_top_goes_on_showing_it_on_a_terminal(
    state: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = iter([None, KeyboardInterrupt()])

    def sleep(_seconds: float) -> None:
        error = next(shown)
        if error is not None:
            raise error

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("gsocks.cli.top.time.sleep", sleep)
    assert main(["top", "--state", state]) == 130
    assert capsys.readouterr().out.count("\x1b[H\x1b[2J") == 2


def test_a_report_tells_what_providers_cost_carried_and_failed(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(told(capsys, "report", "--state", state, "--json"))
    by_name = {each["name"]: each for each in found}
    assert by_name["oxylabs.io"] == {
        "name": "oxylabs.io", "exits": 1, "tries": 20, "failed": 4, "up": 2 * 10**9,
        "down": 6 * 10**9, "connect": 0.0625, "cost": 20.0,
    }  # fmt: skip
    assert by_name["addresses"]["cost"] is None
    found = json.loads(told(capsys, "report", "--state", state, "--json", "--since", "1s"))
    assert {each["tries"] for each in found} == {10}
    for by, names in (("tag", {"fast", "home", "-"}), ("country", {"de", "fr", "-"})):
        found = json.loads(told(capsys, "report", "--state", state, "--json", "--by", by))
        assert {each["name"] for each in found} == names
    lines = told(capsys, "report", "--state", state).splitlines()
    assert " ".join(lines[1].split()) == "oxylabs.io 1 20 4 20.0% 2 GB 6 GB 62 20.00"


class Page(HTMLParser):
    """What a page has: its elements, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]


def test_the_page_has_charts_no_script_and_nothing_from_elsewhere(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    told(capsys, "report", "--state", state, "--html", str(path))
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 5
    assert "rect" in page.tags
    assert "script" not in page.tags
    assert page.links == []
    assert "default-src 'none'" in text
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert main(["report", "--state", state, "--html", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"gsocks: --html: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(
    ("label", "provider"),
    [
        ("http://***@gate.oxylabs.io:7777", "oxylabs.io"),
        ("socks5://pr.proxy.co.uk:1080", "proxy.co.uk"),
        ("https://localhost:1", "localhost"),
        ("socks5://[2001:db8::1]:1080", "addresses"),
        ("socks5://203.0.113.1:1080", "addresses"),
        ("direct", "direct"),
        ("direct://?source=192.0.2.0/24", "direct"),
        ("", "-"),
        ("something else", "something else"),
    ],
)
def test_the_provider_is_the_domain_of_an_exit(label: str, provider: str) -> None:
    assert provider_of(label) == provider


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["requests"], "no config given (-c FILE, or --state FILE: its state file)"),
        (["requests", "--state", "{}/none"], "{}/none-requests: No such file or directory (a config"
            " with state and requests makes it)"),
        (["top", "--state", "{}/none"], "{}/none-history: No such file or directory (a config with"
            " state and admin makes it)"),
        (["requests", "-c", "{}/c.yaml"], "{}/c.yaml: has no state (file: PATH), beside which"
            " history is kept"),
        (["requests", "--state", "x", "--since", "1x"], "--since: '1x' is not a duration"
            " (expected e.g. 30s, 10m or 1h30m)"),
        (["top", "--state", "x", "--limit", "0"], "--limit: expected a whole number from 1"),
        (["explain", "--state", "{}/none", "#x"], "ID: expected # and a number"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    tmp_path: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("local: {listen: '127.0.0.1:0'}\n")
    given: list[Any] = [each.replace("{}", str(tmp_path)) for each in arguments]
    assert main(given) == 2
    assert capsys.readouterr().err == f"gsocks: {why.replace('{}', str(tmp_path))}\n"
