"""The table of gsocks exits on a narrow screen, its order, and the time that is left."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gsocks.cli import exits
from gsocks.cli.report import SORTS, folded, table, time_left
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.lists import ListOptions, parse_list
from gsocks.rotation.probe import ProbeResult

LONG = (
    "10.0.0.2:8080: no answer to the CONNECT within 3 s, after the connection was accepted at once"
)


def results() -> list[ProbeResult]:
    entries = [
        "http://user:secret@proxy-with-a-long-name.provider.example:8080?tags=residential,de",
        "socks5://10.0.0.2:1080?name=home&country=de",
        "socks5://10.0.0.3:1080",
    ]
    one, home, other = list(make_exit_group(entries, ["allow all"]).roster)
    return [
        ProbeResult(one, None, 1.5, "203.0.113.7", "de"),
        ProbeResult(home, LONG, 0.2),
        ProbeResult(other, None, 0.1),
    ]


def test_each_line_fits_the_screen_and_the_reason_which_is_last_is_cut() -> None:
    lines = list(table(results(), 80))
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].endswith("works")
    assert lines[2].endswith("…")
    assert "home" in lines[2]


def test_a_file_gets_whole_lines_and_a_screen_no_empty_columns() -> None:
    lines = list(table(results()))
    assert lines[2].endswith(LONG)
    assert next(table(results()[2:], 80)).split() == ["name", "exit", "ms", "works"]


def test_dead_exits_are_folded_by_their_reasons() -> None:
    dead = [each._replace(trouble=f"10.0.0.{n}:80: refused") for n, each in enumerate(results())]
    assert list(folded(dead)) == ["3 exits: it: refused"]


def test_they_are_sorted_by_speed_with_the_dead_ones_last() -> None:
    found = sorted(results(), key=SORTS["speed"])
    assert [each.seconds for each in found] == [0.1, 1.5, 0.2]


def test_the_time_that_is_left_is_told_at_the_rate_of_all() -> None:
    assert time_left(10, 100, 1.0) == ""
    assert time_left(10, 100, 20.0) == "3m left"
    assert time_left(0, 100, 20.0) == ""


def test_those_that_work_are_written_as_a_list_with_their_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = tmp_path / "live.txt"
    exits._write(live, results())
    assert stat.S_IMODE(live.stat().st_mode) == 0o600
    assert "secret" in live.read_text()
    found = parse_list(live.read_bytes(), ListOptions())
    assert [spec.host for spec in found.exits] == [
        "proxy-with-a-long-name.provider.example",
        "10.0.0.3",
    ]
    assert found.exits[0].tags == ("residential", "de")
    assert "secret" not in capsys.readouterr().err


def test_a_list_that_was_written_stays_if_no_exit_works(tmp_path: Path) -> None:
    live = tmp_path / "live.txt"
    live.write_text("10.0.0.9:80\n")
    exits._write(live, [each._replace(trouble="x") for each in results()])
    assert live.read_text() == "10.0.0.9:80\n"


def test_no_password_is_in_the_table() -> None:
    assert "secret" not in "\n".join(table(results()))
