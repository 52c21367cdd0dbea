"""StateFile: what is kept, who else sees it, and files that can't be used."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gsocks.errors import StateFailed
from gsocks.rotation.state_file import News, Record, StateFile, Traffic

NOW = 1_000_000.0


def record(key: str, value: str = "1", *, stamp: float = NOW, expires: float = NOW + 60) -> Record:
    return Record("local", "session", key, value, stamp, expires)


def traffic(count: int, exit_: str = "berlin", period: str = "2026-11") -> Traffic:
    return Traffic("local", exit_, period, count, NOW + 60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gsocks.db"


@pytest.fixture
def two(path: Path) -> Iterator[tuple[StateFile, StateFile]]:
    """Two processes' views of one file."""
    files = StateFile(path), StateFile(path)
    for each in files:
        each.open()
        assert each.load(NOW) == News([], [])
    yield files
    for each in files:
        each.close()


def content(path: Path, now: float = NOW) -> News:
    file = StateFile(path)
    try:
        return file.load(now)
    finally:
        file.close()


def made(path: Path) -> None:
    file = StateFile(path)
    file.open()
    file.close()


def trouble(path: Path) -> str:
    file = StateFile(path)
    with pytest.raises(StateFailed) as caught:
        file.open()
        file.load(NOW)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_was_written_is_there_at_the_next_start(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("a"), record("b", "é\n")], [traffic(5), traffic(7)], NOW)
    file.close()
    assert content(path) == News([record("a"), record("b", "é\n")], [traffic(12)])


def test_its_repr_tells_whether_it_is_open(path: Path) -> None:
    file = StateFile(path)
    assert repr(file) == f"<StateFile {path} closed>"
    file.open()
    assert repr(file).startswith(f"<StateFile {path} revision ")
    file.close()
    assert repr(file) == f"<StateFile {path} closed>"


def test_what_was_committed_survives_the_death_of_its_process(path: Path) -> None:
    script = (
        "import os, pathlib, sys; from tests.test_state_file import *;"
        "StateFile(pathlib.Path(sys.argv[1])).sync([record('a')], [traffic(5)], NOW);"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert ended.returncode == -9
    assert content(path) == News([record("a")], [traffic(5)])


def test_a_value_takes_the_place_of_an_older_one_only(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("a", "new", stamp=NOW - 1)], [], NOW)
    file.sync([record("a", "old", stamp=NOW - 2)], [], NOW)
    assert content(path).records == [record("a", "new", stamp=NOW - 1)]
    file.sync([record("a", "newer", stamp=NOW - 1)], [], NOW)
    assert content(path).records[0].value == "newer"
    file.close()


def test_a_value_of_a_clock_that_was_ahead_is_replaced(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("a", "ahead", stamp=NOW + 500)], [], NOW + 500)
    file.sync([record("a", "now")], [], NOW)
    assert content(path).records[0].value == "now"
    file.close()


def test_each_process_sees_what_others_have_written_once(two: tuple[StateFile, StateFile]) -> None:
    one, other = two
    assert one.sync([record("a")], [], NOW) == News([], [])
    assert other.sync([record("b")], [], NOW) == News([record("a")], [])
    assert one.sync([], [], NOW) == News([record("b")], [])
    assert one.sync([], [], NOW) == other.sync([], [], NOW) == News([], [])


def test_traffic_adds_up_over_all_processes(two: tuple[StateFile, StateFile]) -> None:
    one, other = two
    assert one.sync([], [traffic(5)], NOW).traffic == [traffic(5)]
    assert other.sync([], [traffic(7), traffic(1, "paris")], NOW).traffic == [
        traffic(12),
        traffic(1, "paris"),
    ]
    assert one.sync([], [], NOW).traffic == [traffic(12), traffic(1, "paris")]


def test_what_has_expired_is_not_loaded_and_is_deleted(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("a", expires=NOW + 10), record("b")], [traffic(1)], NOW)
    assert [each.key for each in content(path, NOW + 10).records] == ["b"]
    file.prune(NOW + 10)
    assert [each.key for each in content(path, 0).records] == ["b"]
    file.prune(NOW + 60)
    assert content(path, 0) == News([], [])
    file.close()


def test_of_too_many_records_those_that_expire_first_are_deleted(path: Path) -> None:
    file = StateFile(path)
    file.max_records = 3
    file.sync([record(str(number), expires=NOW + 10 - number) for number in range(6)], [], NOW)
    file.prune(NOW)
    assert [each.key for each in content(path).records] == ["0", "1", "2"]
    file.close()


def test_a_value_that_is_too_long_is_not_kept(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("a", "x" * 5000), record("b")], [], NOW)
    assert [each.key for each in content(path).records] == ["b"]
    file.close()


def test_its_owner_alone_may_read_it(path: Path) -> None:
    mask = os.umask(0)
    try:
        file = StateFile(path)
        file.sync([record("a")], [], NOW)
        found = list(path.parent.iterdir())
        assert len(found) == 3  # with the log and its index
        assert {stat.S_IMODE(each.stat().st_mode) for each in found} == {0o600}
        file.close()
    finally:
        os.umask(mask)


def test_a_file_of_another_program_is_left_alone(path: Path) -> None:
    path.write_text("not a database, but somewhat longer than the head of one" * 3)
    before = path.read_bytes()
    assert trouble(path) == "file is not a database"
    assert path.read_bytes() == before
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE cookies (name TEXT)")
    other.close()
    before = path.read_bytes()
    assert trouble(path) == "a database of another program, or of another kind"
    assert path.read_bytes() == before


def test_a_file_of_another_layout_is_left_alone(path: Path) -> None:
    made(path)
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version = {StateFile.layout + 1}")
    later.close()
    assert trouble(path) == "written by another version of gsocks"


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM clock",
        "INSERT INTO clock VALUES (7)",
        "UPDATE clock SET revision = 'x'",
        f"UPDATE clock SET revision = {2**63 - 1}",
    ],
)
def test_a_file_whose_clock_is_damaged_is_named(path: Path, damage: str) -> None:
    made(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(damage)
    file = StateFile(path)
    with pytest.raises(StateFailed, match=r": damaged$"):
        file.load(0.0)
    with pytest.raises(StateFailed, match=r": damaged$"):
        file.sync([], [], 0.0)
    file.close()


def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    assert content(path) == News([], [])


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named_before_it_is_opened(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "state"
    make(path)
    assert trouble(path) == "not a file"
    with pytest.raises(StateFailed, match=r": not a file$"):
        StateFile(path).check()  # to open a FIFO would wait for its other end


def test_a_folder_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    assert trouble(tmp_path) == "not a file"
    assert trouble(tmp_path / "missing" / "gsocks.db") == "No such file or directory"


def test_a_damaged_file_is_reported(path: Path) -> None:
    file = StateFile(path)
    file.sync([record(str(number), "x" * 1000) for number in range(100)], [], NOW)
    file.close()
    with path.open("r+b") as raw:
        raw.seek(8192)
        raw.write(b"\xff" * (path.stat().st_size - 8192))
    assert trouble(path) == "database disk image is malformed"


def test_a_file_that_may_not_be_written_is_reported(path: Path) -> None:
    made(path)
    # as root may write whatever the mode is, an immutable snapshot stands for a read-only disk
    script = (
        "import pathlib, sqlite3, sys; from tests.test_state_file import *;"
        "connect = sqlite3.connect;"
        "sqlite3.connect = lambda path, **more:"
        " connect(f'file:{path}?mode=ro', uri=True, **more);"
        "print(trouble(pathlib.Path(sys.argv[1])))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "attempt to write a readonly database\n"


def test_after_a_full_disk_the_next_attempt_writes_everything(path: Path) -> None:
    file = StateFile(path)
    file.sync([record("before")], [], NOW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StateFailed):
            file.sync([record("a", "x" * 3000), record("b", "x" * 3000)], [traffic(5)], NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(path) == News([record("before")], [])
    news = file.sync([record("a"), record("b")], [traffic(5)], NOW)
    assert news.traffic == [traffic(5)]
    assert [each.key for each in content(path).records] == ["a", "b", "before"]
    file.close()


def test_its_size_is_bounded(path: Path) -> None:
    file = StateFile(path, 200 * 1024)
    with pytest.raises(StateFailed, match="full"):
        for number in range(1000):
            file.sync([record(str(number), "x" * 4000)], [], NOW)
    file.close()
    assert path.stat().st_size <= 200 * 1024
