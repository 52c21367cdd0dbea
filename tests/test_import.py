"""``gsocks import``, and the skipped entries that ``gsocks check`` reports."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from gsocks.main import main

LIST = """\
10.0.0.7:8080:joe:hunter2 country=de tags=fast weight=2 name=berlin
hunter2
10.0.0.7:8080:joe:hunter2
vmess://hunter2@10.0.0.8:443
10.0.0.9:80
"""


def written(folder: Path, text: str = LIST) -> str:
    path = folder / "list.txt"
    path.write_text(text)
    return str(path)


def test_a_list_becomes_one_url_a_line_without_its_passwords(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    assert main(["import", path]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "http://joe:***@10.0.0.7:8080 name=berlin country=de tags=fast weight=2",
        "http://10.0.0.9:80",
    ]
    first, second, last = err.splitlines()
    assert first.startswith(f"{path}: line 2 skipped: not an exit")
    assert second.startswith(f"{path}: line 4 skipped: unknown scheme vmess://")
    assert last == "2 exits, 1 duplicates, 2 skipped"
    assert "hunter2" not in out + err


def test_a_list_with_credentials_says_the_same_as_the_one_that_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["import", written(tmp_path), "--with-credentials"])
    once = capsys.readouterr().out
    assert once.startswith("http://joe:hunter2@10.0.0.7:8080 ")
    main(["import", written(tmp_path, once), "--with-credentials"])
    assert capsys.readouterr().out == once


def test_a_list_is_converted_into_a_file_of_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = written(tmp_path), tmp_path / "exits.txt"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    assert main(["import", path, "-o", str(link)]) == 0
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith("2 exits, 1 duplicates, 2 skipped\n")
    assert target.read_text().splitlines() == [
        "http://joe:hunter2@10.0.0.7:8080 name=berlin country=de tags=fast weight=2",
        "http://10.0.0.9:80",
    ]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert link.is_symlink()


def test_a_file_to_write_stays_as_it_is_where_there_is_no_exit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exits.txt"
    target.write_text("old")
    assert main(["import", written(tmp_path, "hunter2"), "-o", str(target)]) == 1
    assert target.read_text() == "old"
    capsys.readouterr()
    for name, why in (("", "not a file"), ("none/exits.txt", "No such file")):
        assert main(["import", written(tmp_path), "-o", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert why in err


def test_entries_without_a_kind_have_the_one_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", written(tmp_path), "--scheme", "socks5"]) == 0
    assert "socks5://10.0.0.9:80\n" in capsys.readouterr().out
    assert main(["import", written(tmp_path), "--scheme", "vmess"]) == 2
    assert capsys.readouterr().err.startswith("gsocks: --scheme: 'vmess' is no kind of proxy")


def test_a_list_without_an_exit_reports_every_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [{"type": "vmess", "server": "10.0.0.7", "port": n} for n in (1, 2, 3)]
    assert main(["import", written(tmp_path, json.dumps({"proxies": nodes}))]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.count("skipped: type: vmess is no kind of exit") == 3
    assert err.endswith("0 exits, 3 skipped\n")


def test_a_file_that_is_no_list_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", written(tmp_path, "<html>")]) == 2
    assert "looks like a web page" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_check_reports_every_skipped_entry_of_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, LIST + "hunter2\n" * 120)
    (tmp_path / "c.yaml").write_text(
        "local: {listen: '127.0.0.1:1', exit_sources: [{file: list.txt}]}"
    )
    assert main(["check", "-c", str(tmp_path / "c.yaml")]) == 0
    out = capsys.readouterr().out
    assert f"{path}: line 2 skipped: not an exit" in out
    assert f"{path}: line 4 skipped: unknown scheme vmess://" in out
    assert out.count(" skipped: ") == 122
    assert "hunter2" not in out
