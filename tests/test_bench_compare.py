"""The comparison of two builds: what it starts, its sums, its table, and that it cleans up.

No time is asserted, nor any other number that a machine could be too slow for.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench import budgets, processes
from bench.compare import builds, counts
from bench.compare.builds import WORKING_TREE, UnknownRevision, checked_out, commit_before
from bench.compare.measures import ROWS, in_turn
from bench.compare.table import Row, Samples, median_within, outcomes, table
from bench.contenders.gsocks import Build
from bench.processes import ROOT, Failed
from tests.support.waiting import TOO_LONG, eventually

COST = Row("cost", "new connection, plain", "CPU us", 1)


def compare(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.compare", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def worktrees() -> str:
    run = subprocess.run(
        ["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout


def runs_gsocks(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"gsocks" in arguments


def run_in(build: Build, code: str) -> subprocess.CompletedProcess[str]:
    *python, minus_m, _ = build.command
    assert minus_m == "-m"
    return subprocess.run(
        [*python, "-c", code],
        cwd="/",
        env=os.environ | dict(build.environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


# --- a run ----------------------------------------------------------------------------------


def test_a_quick_comparison_measures_all_rows_of_both_builds(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    run = compare("HEAD", "--quick", "--rounds", "1", "--json", str(file))
    printed, progress = run.communicate(timeout=180)
    assert run.returncode == 0, progress
    assert "[1/" in progress
    results = json.loads(file.read_text())
    assert results["new"]["name"] == WORKING_TREE
    assert results["text"] == printed.rstrip("\n")
    assert [row["key"] for row in results["rows"]] == [row.key for row in ROWS]
    for row in results["rows"]:
        base, new = row["samples"]["base"], row["samples"]["new"]
        assert len(base) == len(new) > 0
        assert all(math.isfinite(value) and value > 0 for value in base + new)
    assert max(map(len, printed.splitlines())) <= 72


def test_an_interrupted_comparison_leaves_no_process_and_no_worktree_behind() -> None:
    run = compare("HEAD", "HEAD", "--quick")
    eventually(lambda: any(map(runs_gsocks, processes.family([run.pid]))), within=TOO_LONG)
    family = processes.family([run.pid])
    folder = f"gsocks-compare-{run.pid}-"
    assert folder in worktrees()
    run.send_signal(signal.SIGTERM)
    _, progress = run.communicate(timeout=TOO_LONG)
    assert run.returncode == 128 + signal.SIGTERM, progress
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family))
    assert folder not in worktrees()


# --- what is compared -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HEAD", WORKING_TREE])
def test_a_build_runs_the_modules_of_its_own_tree_and_no_others(tmp_path: Path, name: str) -> None:
    tree = tmp_path / "tree"
    with checked_out(name, tree) as source:
        found = run_in(source.build, "import gsocks, gevent; print(gsocks.__file__)")
        assert found.stdout.strip() == str(tree / "gsocks" / "__init__.py"), found.stderr
        # an editable install would supply it from the tree that it was made of
        (tree / "gsocks" / "main.py").unlink()
        assert "No module named 'gsocks.main'" in run_in(source.build, "import gsocks.main").stderr


def test_a_worktree_lives_as_long_as_its_block(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    with checked_out("HEAD", tree):
        assert str(tree) in worktrees()
    assert str(tree) not in worktrees()
    assert not tree.exists()


def test_an_unknown_revision_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UnknownRevision, match="no such revision: nonsense"),
        checked_out("nonsense", tmp_path / "tree"),
    ):
        pass


def test_the_builds_take_turns_at_being_first() -> None:
    order = [side for turn in range(4) for side in in_turn(turn)]
    assert order == ["base", "new", "new", "base", "base", "new", "new", "base"]


# --- the sums -------------------------------------------------------------------------------


def test_a_ratio_is_of_samples_that_follow_each_other() -> None:
    # the machine was four times as slow for the second pair of them
    (outcome,) = outcomes([COST], {"cost": {"base": [2, 8, 2], "new": [3, 12, 3]}})
    assert (outcome.base, outcome.new) == (2, 3)
    assert outcome.ratio == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [
        (1, 1, 1),
        (3, 1, 3),
        # the true median is outside with a probability of 2/32
        (5, 1, 5),
        # of 20: 2 * (1 + 20 + 190 + 1140 + 4845) / 2**20 = 0.012; with the next one 0.041, 0.115
        (20, 6, 15),
    ],
)
def test_the_range_of_the_median_is_narrower_with_more_values(
    count: int, low: int, high: int
) -> None:
    values = list(range(count, 0, -1))
    assert median_within(values) == ((count + 1) / 2, low, high)


@pytest.mark.parametrize(
    ("new", "mark"),
    [
        ([100, 100, 100, 100, 100], ""),
        ([90, 100, 100, 100, 103], ""),
        ([90, 100, 100, 100, 104], "?"),
        ([90, 110, 110, 110, 110], "?"),
        ([104, 110, 110, 110, 110], "!"),
    ],
)
def test_what_is_more_than_3_percent_worse_is_marked(new: list[float], mark: str) -> None:
    (outcome,) = outcomes([COST], {"cost": {"base": [100] * 5, "new": new}})
    assert outcome.mark == mark


def test_a_row_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples of cost"):
        outcomes([COST], {"cost": {"base": [], "new": []}})


def test_a_sample_without_its_other_half_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        outcomes([COST], {"cost": {"base": [1, 2], "new": [1]}})


def test_the_table_shows_both_medians_and_the_ratio_with_its_range() -> None:
    memory = Row("memory", "idle connection, pair", "KiB", 2)
    samples = {
        "cost": {"base": [100.0, 100.0, 100.0], "new": [110.0, 120.0, 130.0]},
        "memory": {"base": [8.0], "new": [7.5]},
    }
    assert table(outcomes([COST, memory], samples)).splitlines() == [
        "                                base    new  ratio     spread",
        "new connection, plain  CPU us  100.0  120.0  1.200  1.10-1.30  !",
        "idle connection, pair  KiB      8.00   7.50  0.938  0.94-0.94",
    ]


# --- budgets --------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@test", *arguments]
    run = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of one module, without a history."""
    monkeypatch.setattr(builds, "ROOT", tmp_path)
    # a repository that the folder lies in is not its own
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "gsocks").mkdir()
    (tmp_path / "gsocks" / "main.py").write_text("0\n")
    return tmp_path


def commit(folder: Path, text: str) -> str:
    (folder / "gsocks" / "main.py").write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "change")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_before_is_the_one_that_the_tree_differs_from(repository: Path) -> None:
    git(repository, "init", "--quiet")
    first, second = commit(repository, "1\n"), commit(repository, "2\n")
    assert commit_before() == first
    # not of the modules that are counted
    (repository / "README.md").write_text("changed\n")
    assert commit_before() == first
    (repository / "gsocks" / "new.py").write_text("3\n")
    assert commit_before() == second


def test_a_tree_without_a_history_is_compared_with_nothing(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert commit_before() is None
    with checked_out(WORKING_TREE, tmp_path_factory.mktemp("copy") / "tree") as source:
        assert source.commit == "not from a repository"
    git(repository, "init", "--quiet")
    assert commit_before() is None
    commit(repository, "1\n")
    assert commit_before() is None


def counts_that(monkeypatch: pytest.MonkeyPatch, *failing: str) -> None:
    """Counting gives 100 thousand of everything, and fails for some sides."""

    def count(counted: Mapping[str, Build], slices: int) -> Samples:
        for side in counted:
            if side in failing:
                raise Failed(f"counts, {side}: broken")
        return {row.key: dict.fromkeys(counted, [100.0] * slices) for row in counts.ROWS}

    monkeypatch.setattr(counts, "missing", lambda: "")
    monkeypatch.setattr(counts, "count", count)
    monkeypatch.setattr(sys, "argv", ["bench.budgets", "--quick"])


def test_a_commit_before_that_cannot_be_counted_leaves_its_column_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budgets, "commit_before", lambda: "HEAD")
    counts_that(monkeypatch, "base")
    assert budgets.main() == 0
    said = capsys.readouterr()
    assert "no counts of the commit before: counts, base: broken" in said.err
    lines = said.out.splitlines()[2:]
    assert [line.split()[-4:] for line in lines if "plain" in line] == [["100.0", "-", "-", "200"]]
    # over its budget, which fails nothing
    assert [line.split()[-2:] for line in lines if "echo" in line] == [["50", "over"]] * 2
    assert max(map(len, lines)) <= 80


def test_a_working_tree_that_cannot_be_counted_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts_that(monkeypatch, "new")
    assert budgets.main() == 1
    assert capsys.readouterr().err == "counts, new: broken\n"


def test_without_valgrind_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.budgets"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert budgets.main() == 1
    assert "valgrind, vgdb (in Debian's package valgrind)" in capsys.readouterr().err


def test_the_least_sample_stands_beside_the_commit_before_and_the_budget() -> None:
    rows = [COST._replace(budget=110), Row("memory", "idle connection, pair", "KiB", 2)]
    now = {"cost": [130.0, 120.0], "memory": [7.5]}
    before = {"cost": [100.0, 103.0], "memory": [8.0]}
    assert budgets.table(rows, now, before).splitlines() == [
        "                                 now  before  ratio  budget",
        "new connection, plain  CPU us  120.0   100.0  1.200     110  over",
        "idle connection, pair  KiB      7.50    8.00  0.938       -",
    ]
