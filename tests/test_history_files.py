"""The history in its files: counters of a month, the request log, and what a full disk loses."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gsocks import config
from gsocks.admin.history import AskedHistory
from gsocks.admin.peers import Peers
from gsocks.errors import ConfigError, HistoryFailed
from gsocks.history import history as history_module
from gsocks.history import request_file as request_file_module
from gsocks.history.cells import ALL
from gsocks.history.counter_file import CounterFile
from gsocks.history.counters import MemoryCounters
from gsocks.history.history import Ended, FileCounters, History, row_of
from gsocks.history.pseudonym import pseudonym
from gsocks.history.request_file import RequestFile
from gsocks.history.requests import (
    RecentRequests,
    RequestFilter,
    RequestRow,
    TryRow,
    matches,
)
from gsocks.history.series import ExitInfo
from gsocks.observe import Details, NullObserver, Record, Try
from gsocks.settings import RequestLogSettings
from tests.support.engine import Seen, eventually
from tests.support.history_rows import MB, row

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

KEY = b"k" * 32


def ended(dest: str = "www.example.com:443", outcome: str = "ok", **how: Any) -> Ended:
    record = Record("local", "192.0.2.1:5000", "c1-1", start=100.0)
    record.dest, record.outcome, record.user = dest, outcome, how.get("user")
    record.detail = "" if outcome == "ok" else f"{dest}: refused"
    details = record.details = Details()
    details.exit, details.connect, details.answered = "berlin-1", 0.02, 100.05
    details.tries = [Try("paris-1", 100.0, 100.5, "timed_out", f"{dest}: too slow")]
    return Ended("local", record, 101.5)


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[RequestFile]:
    with closing(RequestFile(tmp_path / "state-requests", 64 * MB)) as file:
        yield file


# --- the request log --------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_written(requests: RequestFile) -> None:
    tries = (TryRow("paris-1", "timed_out", "too slow", 0.5),)
    requests.add([row(tries=tries, connect=None, matching=None)])
    (found,) = requests.search().rows
    assert found == row(number=1, tries=tries, connect=None, matching=None)


def test_the_file_is_for_its_owner_alone(requests: RequestFile) -> None:
    requests.add([row()])
    for suffix in ("", "-wal", "-shm"):
        mode = os.stat(f"{requests.path}{suffix}").st_mode
        assert stat.S_IMODE(mode) == 0o600, suffix


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_rows_are_added_in_their_order_however_many_they_are(
    requests: RequestFile, count: int
) -> None:
    for part in range(2):
        requests.add([row(id=f"{part}-{number}") for number in range(count)])
    found = requests.search(limit=1000).rows[::-1]
    assert [each.id for each in found] == [f"{p}-{n}" for p in range(2) for n in range(count)]
    assert [each.number for each in found] == list(range(1, 2 * count + 1))


FILTERS = [
    ({"exit": "berlin-1"}, [2, 1]),
    ({"exit": "paris-1"}, [3, 1]),
    ({"exit": "!paris-1"}, [2]),
    ({"exit": "paris"}, []),
    ({"outcome": "!ok"}, [3]),
    ({"outcome": "ok", "user": "bob"}, [2]),
    ({"user": "!bob"}, [3, 1]),
    ({"dest": "www.example.com"}, [1]),
    ({"dest": ".example.com"}, [2, 1]),
    ({"dest": "!.example.com"}, [3]),
    ({"dest": ".ample.com"}, []),
    ({"client": "192.0.2.1"}, [3, 2, 1]),
    ({"client": "!192.0.2.1"}, []),
    ({"status": "403"}, [3]),
    ({"status": "!403"}, [2, 1]),
    ({"since": 1010.0}, [3, 2]),
    ({"until": 1010.0}, [1]),
    ({"id": "c1-1"}, [2, 1]),
    ({"id": "!c1-1"}, [3]),
    ({"text": "EXAMPLE"}, [2, 1]),
    ({"text": "100%_' OR 1"}, []),
    ({"inbound": "server"}, []),
    ({"session": "!x"}, [3, 2, 1]),
    ({}, [3, 2, 1]),
]


@pytest.mark.parametrize(("which", "numbers"), FILTERS)
def test_a_search_finds_what_its_filter_selects_in_memory_and_in_the_file(
    requests: RequestFile, which: dict[str, Any], numbers: list[int]
) -> None:
    rows = [
        row(tries=(TryRow("paris-1", "refused", "", 0.1),)),
        row(time=1010.0, user="bob", dest="example.com:80"),
        row(time=1020.0, id="c1-2", exit="paris-1", outcome="http_403", status=403, dest="[::1]:9"),
    ]
    requests.add(rows)
    recent = RecentRequests()
    for each in rows:
        recent.add(each)
    wanted = RequestFilter(**which)
    assert [each.number for each in requests.search(wanted).rows] == numbers
    assert [each.number for each in recent.search(wanted).rows] == numbers
    assert all(matches(each, wanted) for each in requests.search(wanted).rows)


def test_a_search_is_gone_through_in_pages_and_followed(
    requests: RequestFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_file_module, "_AT_ONCE", 3)
    requests.add(row(time=1000.0 + n, outcome="ok" if n % 5 else "timed_out") for n in range(20))
    recent = RecentRequests()
    for n in range(20):
        recent.add(row(time=1000.0 + n, outcome="ok" if n % 5 else "timed_out"))
    for log in (requests, recent):
        page = log.search(limit=8)
        assert [each.number for each in page.rows] == list(range(20, 12, -1))
        page = log.search(limit=8, before=page.before)
        assert [each.number for each in page.rows] == list(range(12, 4, -1))
        page = log.search(limit=8, before=page.before)
        assert ([each.number for each in page.rows], page.before) == ([4, 3, 2, 1], None)
        assert [each.number for each in log.search(after=18).rows] == [20, 19]
        failed = log.search(RequestFilter(outcome="!ok"), limit=2)
        assert [each.number for each in failed.rows] == [16, 11]
        assert not failed.is_partial


def test_a_search_that_takes_too_long_ends_and_can_be_gone_on_with(
    requests: RequestFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.add(row() for _ in range(20))
    monkeypatch.setattr(request_file_module, "_AT_ONCE", 4)
    monkeypatch.setattr(request_file_module, "MAX_SEARCH", -1.0)
    page = requests.search(RequestFilter(outcome="x"))
    assert page == ([], 21, True)


def test_rows_are_deleted_by_age_and_by_the_size_of_the_file(tmp_path: Path) -> None:
    with closing(RequestFile(tmp_path / "r", MB)) as file:
        file.add(row(time=float(n)) for n in range(100))
        file.prune(50.0)
        assert len(file.search(limit=1000).rows) == 50
        for n in range(60):
            file.add(row(time=100.0 + n, detail="x" * 500) for _ in range(100))
            file.prune(50.0)
        left = file.search().rows
        assert left[0].time == 159.0
        assert file.path.stat().st_size <= MB


def test_a_log_that_is_full_between_two_deletions_gives_up_its_oldest_rows(tmp_path: Path) -> None:
    with closing(RequestFile(tmp_path / "r", MB)) as file:
        for n in range(60):
            file.add(row(time=100.0 + n, detail="x" * 500) for _ in range(50))
        left = file.search(limit=1000).rows
        assert left[0].time == 159.0
        assert len(left) > 500
        assert file.path.stat().st_size <= MB


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r"
    path.write_bytes(content)
    file = RequestFile(path, MB)
    if content:
        with pytest.raises(HistoryFailed, match="r: file is not a database"):
            file.add([row()])
        assert path.read_bytes() == content
    else:
        with pytest.raises(HistoryFailed, match="has nothing yet"):
            file.search()
    file.close()


def test_a_file_of_another_kind_or_none_is_told_in_one_line(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE x (y)")
        other.commit()
    for path, why in (
        (tmp_path / "other", "a database of another program, or of another kind"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "not a file"),
    ):
        with pytest.raises(HistoryFailed) as failed:
            RequestFile(path, MB).search()
        assert str(failed.value) == f"{path}: {why}"


def test_several_processes_write_one_log_and_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.test_history_files import row, MB\n"
        "from gsocks.history.request_file import RequestFile\n"
        "file = RequestFile(Path(sys.argv[1]), 64 * MB)\n"
        "for n in range(20): file.add([row(id=f'{sys.argv[2]}-{n}')] * 10)\n"
    )
    path = tmp_path / "r"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(2)]
    assert [each.wait() for each in writers] == [0, 0]
    rows = RequestFile(path, MB).search(limit=1000).rows
    assert len(rows) == 400
    assert [each.number for each in rows] == list(range(400, 0, -1))


def test_redaction_leaves_neither_host_nor_text_and_keeps_hosts_apart() -> None:
    found = row_of(ended(outcome="refused"), 0.0, KEY)
    assert "example" not in repr(found)
    assert found.dest == pseudonym("www.example.com:443", KEY)
    assert found.dest == pseudonym("www.example.com:80", KEY).replace(":80", ":443")
    assert found.dest != pseudonym("other.example.com:443", KEY)
    assert found.dest != pseudonym("www.example.com:443", b"x" * 32)
    assert (found.outcome, found.tries[0].why, found.tries[0].seconds) == (
        "refused",
        "timed_out",
        0.5,
    )


def test_a_row_tells_the_story_of_its_request() -> None:
    found = row_of(ended(outcome="refused"), 1000.0)
    assert (found.time, found.total, found.connect) == (1100.0, 1.5, 0.02)
    assert found.first_byte == pytest.approx(0.05)
    assert found.detail == "www.example.com:443: refused"
    assert found.tries == (TryRow("paris-1", "timed_out", "www.example.com:443: too slow", 0.5),)
    bare = Record("local", "192.0.2.1:5000", start=100.0)
    assert row_of(Ended("local", bare, 101.0), 0.0).exit == ""


def test_of_a_long_reason_the_beginning_is_kept() -> None:
    each = ended(outcome="refused")
    each.record.detail = "x" * 100_000
    details = each.record.details
    assert details is not None
    details.tries = [Try("paris-1", 100.0, 100.5, "refused", "y" * 100_000)]
    found = row_of(each, 0.0)
    assert (len(found.detail), len(found.tries[0].detail)) == (300, 300)


# --- the counters -----------------------------------------------------------------------------


def test_counters_of_several_processes_add_up_in_the_file(tmp_path: Path) -> None:
    at = int(time.time()) // 3600 * 3600
    info = ExitInfo("http://***@gate.example:80", "de", "fast", 2.5)
    for connects in (3.0, 4.0):
        with closing(CounterFile(tmp_path / "h")) as file:
            cell = [2.0, 1.0, 10.0, 100.0, 0.5, connects, 0.0, 0.0, 1.25]
            changes = {
                (3600, at, "exit", "local/a"): cell,
                (3600, at, "total", ALL): [*cell, 60.0, 0.3 if connects > 3 else 0.1, *[1.0] * 24],
                (60, at, "exit", "local/a"): cell,
            }
            file.add(changes, {"local/a": info})
            kept = FileCounters(file)
            try:
                asked = AskedHistory(MemoryCounters(time.time), Peers(), kept=kept)
                (point, *_) = asked.series("exit", "local/a", at, 3600)
                totals = asked.totals("exit", at, 3600)
                (whole, *_) = asked.series("total", ALL, at, 3600)
            finally:
                kept.close()
    assert (point.requests, point.failed, point.up, point.down) == (4, 2, 20, 200)
    assert [point.connect, point.total] == [round(1 / 7, 6), 0.625]
    assert totals["local/a"].down == 200
    assert (whole.lag, whole.requests) == (0.3, 4)
    assert whole.connect_p50 is not None
    with closing(CounterFile(tmp_path / "h")) as file:
        assert file.names("exit") == ["local/a"]
        assert file.exits() == {"local/a": info}


def test_minutes_are_kept_for_a_day_and_hours_for_a_month(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    cell = [1.0] + [0.0] * 8
    with closing(CounterFile(tmp_path / "h")) as file:
        for name, age in (("new", 0), ("day", 90_000), ("month", 31 * 86400)):
            at = int(now) - age
            file.add(
                {(step, at // step * step, "exit", name): cell for step in (60, 3600)},
                {name: ExitInfo(name, "", "", None)},
            )
        file.prune(now)
        found = {step: file.totals("exit", 0.0, now + 3600, step) for step in (60, 3600)}
        assert (sorted(found[60]), sorted(found[3600])) == (["new"], ["day", "new"])
        assert sorted(file.names("exit")) == sorted(file.exits()) == ["day", "new"]


def test_where_a_file_fails_what_is_in_memory_is_told(tmp_path: Path) -> None:
    counters = MemoryCounters(time.time)
    counters.count("local", ended().record, 101.0)
    kept = FileCounters(CounterFile(tmp_path / "none"))
    asked = AskedHistory(counters, Peers(), kept=kept)
    try:
        since = time.time() - 60
        assert sum(each.requests for each in asked.series("exit", "local/berlin-1", since)) == 1
        assert asked.totals("exit", since)["local/berlin-1"].requests == 1
    finally:
        kept.close()


# --- beside the loop --------------------------------------------------------------------------


class Rig:
    """A history with files in a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.counters = MemoryCounters(time.time)
        self.counter_file = CounterFile(folder / "h")
        self.request_file = RequestFile(folder / "r", settings.pop("max_size", 64 * MB))
        self.seen = Seen()
        self.history = History(
            self.counters,
            self.counter_file,
            self.request_file,
            RequestLogSettings(**settings),
            exits=lambda _: ExitInfo("direct", "", "", None),
            key=KEY,
            random=Random(1),
        )
        self.history.interval = self.history.fold_interval = 0.02
        self.observer = self.history.observer("local", self.seen)

    def end(self, **how: Any) -> None:
        found = ended(**how)
        found.record.start = time.monotonic() - 1.0
        self.observer.ended(found.record)

    def logged(self) -> list[RequestRow]:
        try:
            return RequestFile(self.request_file.path, MB).search(limit=1000).rows
        except HistoryFailed:
            return []


def test_requests_are_logged_and_counted_in_batches_and_at_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.history.start()
    rig.end()
    rig.end(outcome="refused")
    eventually(lambda: len(rig.logged()) == 2)
    rig.end()
    rig.history.close()
    assert len(rig.logged()) == 3
    with closing(CounterFile(tmp_path / "h")) as file:
        totals = file.totals("exit", time.time() - 60, step=60)
        assert [int(value) for value in totals["local/berlin-1"][:2]] == [3, 1]
        assert file.exits()["local/berlin-1"].label == "direct"
    assert len(rig.seen.all) == 3


def test_many_counters_are_written_once_a_minute_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MANY_CHANGES", 3)
    rig = Rig(tmp_path)
    rig.history.interval = rig.history.fold_interval = 3600.0  # what follows is its loop
    rig.history.start()
    rig.end()
    rig.history._work(fold=True, prune=False)
    assert rig.counters.changes == {}
    rig.end()
    rig.history._work(fold=True, prune=False)
    assert rig.counters.changes
    rig.history.close()
    with closing(CounterFile(tmp_path / "h")) as file:
        assert file.totals("outcome", time.time() - 60, step=60)["ok"][0] == 2


def test_what_says_nothing_is_neither_counted_nor_logged(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.history.start()
    silent = ended().record
    silent.is_routine = True
    rig.observer.ended(silent)
    rig.history.close()
    assert rig.logged() == []
    assert rig.counters.names("exit") == []
    assert len(rig.seen.all) == 1


def test_of_a_sample_a_part_is_logged_and_all_are_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, sample=0.25)
    rig.history.start()
    for _ in range(200):
        rig.end()
    rig.history.close()
    assert 25 <= len(rig.logged()) <= 75
    point = AskedHistory(rig.counters, Peers()).totals("user", time.time() - 60)
    assert point == {}
    total = AskedHistory(rig.counters, Peers()).totals("outcome", time.time() - 60)["ok"]
    assert total.requests == 200


def test_hosts_are_redacted_in_the_file(tmp_path: Path) -> None:
    rig = Rig(tmp_path, redact="hosts")
    rig.history.start()
    rig.end(outcome="refused")
    rig.history.close()
    assert [each.outcome for each in rig.logged()] == ["refused"]
    found = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"example" not in found


def test_a_full_disk_loses_history_and_no_request_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on the size of a file stands for the disk."""
    monkeypatch.setattr(history_module, "MAX_PENDING", 50)
    monkeypatch.setattr(History, "retry_delay", 0.01)
    tries: list[bool] = []
    try_ = History._try

    def noted(history: History, *used: Any) -> bool:
        tries.append(try_(history, *used))
        return tries[-1]

    monkeypatch.setattr(History, "_try", noted)
    rig = Rig(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rig.end()
    rig.history.start()
    eventually(lambda: len(rig.logged()) == 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        for _ in range(100):
            rig.end()
        eventually(lambda: rig.history.dropped > 0)
        seen = tries.count(False)
        eventually(lambda: tries.count(False) > seen + 3)
        assert len(rig.seen.all) == 101
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    eventually(lambda: len(rig.logged()) == 51)
    rig.history.close()
    told = [record.getMessage() for record in caplog.records if record.name == "gsocks.history"]
    assert len([line for line in told if "history is lost meanwhile" in line]) == 2
    assert all(line.count("\n") == 0 for line in told)


def test_a_file_that_was_deleted_is_made_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.history.start()
    rig.end()
    eventually(lambda: len(rig.logged()) == 1)
    for path in tmp_path.glob("r*"):
        path.unlink()
    rig.end()
    eventually(lambda: len(rig.logged()) == 1)
    rig.history.close()


def test_without_files_there_are_counters_alone() -> None:
    history = History(MemoryCounters(time.time))
    history.start()
    history.observer("local", NullObserver()).ended(ended().record)
    history.close()
    assert history.requests is None
    assert history.counters.names("exit") == ["local/berlin-1", "local/paris-1"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("requests: {}", "requests: needs state (file: PATH), beside which it is kept"),
        ("state: {file: s}\nrequests: {sample: 0}", "requests.sample: "),
        ("state: {file: s}\nrequests: {sample: 1.5}", "requests.sample: "),
        ("state: {file: s}\nrequests: {redact: all}", "requests.redact: "),
        ("state: {file: s}\nrequests: {keep: forever}", "requests.keep: "),
        ("tracing: {endpoint: 'http://user:secret@host/'}", "tracing.endpoint: "),
        ("tracing: {endpoint: 'http://host/?key=x'}", "tracing.endpoint: "),
        ("tracing: {endpoint: 'grpc://host'}", "tracing.endpoint: "),
    ],
)
def test_a_mistake_in_its_config_is_one_line_without_secrets(
    tmp_path: Path, text: str, mistake: str
) -> None:
    with pytest.raises(ConfigError) as failed:
        config.parse(f"local: {{listen: '127.0.0.1:0'}}\n{text}\n", tmp_path)
    assert str(failed.value).startswith(f"config.yaml: {mistake}")
    assert "\n" not in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_config_has_the_request_log_as_it_is_written(tmp_path: Path) -> None:
    text = "{keep: 30d, max_size: 2GB, sample: 0.25, redact: hosts}"
    found = config.parse(
        f"local: {{listen: '127.0.0.1:0'}}\nstate: {{file: s}}\nrequests: {text}\n", tmp_path
    )
    assert found.requests == RequestLogSettings(
        keep=30 * 86400.0, max_size=2 * 10**9, sample=0.25, redact="hosts"
    )
