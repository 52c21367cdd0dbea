"""The benchmark: that its quick form runs, that it sums up rightly, that it leaves nothing behind.

No time is asserted, nor any other number that a machine could be too slow for.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import processes, summary
from bench.contenders import CONTENDERS
from bench.document import BEGIN, DOCUMENT, END, with_results
from bench.figures import FIGURES
from bench.figures.base import Goal
from bench.processes import ROOT
from bench.report import report
from bench.scale import FULL

FEW = ("none", "gsocks-secretbox", "gsocks-plain")


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def bench(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- a run ----------------------------------------------------------------------------------


def test_a_quick_run_yields_all_that_it_promises(tmp_path: Path) -> None:
    figures = ["bulk", "idle", "echo"]
    run = bench("--figures", *figures, "--contenders", *FEW, "--output", str(tmp_path))
    said, progress = run.communicate(timeout=120)
    assert run.returncode == 0, progress
    assert "[1/" in progress

    results = json.loads((tmp_path / "part.json").read_text())
    assert [one["name"] for one in results["contenders"]] == list(FEW)
    assert [figure["name"] for figure in results["figures"]] == figures
    for figure in results["figures"]:
        assert figure["failures"] == {}
        concerned = set(FEW) - ({"none"} if figure["name"] == "idle" else set())
        assert set(figure["samples"]) == concerned
        keys = {measure["key"] for measure in figure["measures"]}
        for samples in figure["samples"].values():
            assert len(samples) == results["about"]["scale"]["rounds"]
            assert all(set(sample) == keys for sample in samples)
            assert all(math.isfinite(value) for sample in samples for value in sample.values())
    # those on memory are judged; those on peers that were not asked to take part are not
    assert {goal["met"] is None for goal in results["goals"]} == {True, False}
    assert report(results) in said


def test_the_long_link_can_be_had_without_any_rights(tmp_path: Path) -> None:
    # port 9 need not answer: the relay connects when it is connected to
    argv = [sys.executable, "-m", "bench.link.relay", "9", "0.05"]
    relay = processes.start(argv, tmp_path, stdout=subprocess.PIPE)
    with processes.ended_after([relay]):
        assert relay.stdout is not None
        host, seen, port = relay.stdout.readline().decode().split()
        assert (host, seen) == ("127.0.0.1", "127.0.0.1")
        assert int(port) > 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path, signum: int) -> None:
    run = bench("--contenders", "gsocks-secretbox", "--output", str(tmp_path))
    family: list[int] = []
    deadline = time.monotonic() + 30
    # the benchmark itself, the target, a server
    while len(family) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        family = processes.family([run.pid])
    assert len(family) >= 3
    run.send_signal(signum)
    run.communicate(timeout=30)
    assert run.returncode == 128 + signum
    # one that was being started just then is ended by the kernel, a moment after the benchmark
    while any(map(_lives, family)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(filter(_lives, family))
    assert not list(tmp_path.iterdir())


# --- who is measured, and by what -----------------------------------------------------------


def test_each_goal_is_about_something_that_is_measured() -> None:
    names = {contender.name for contender in CONTENDERS}
    for figure in FIGURES:
        for goal in figure.goals:
            assert goal.contender in names
            assert goal.versus in names | {""}
            assert goal.measure in {measure.key for measure in figure.measures}
            assert (goal.at_least is None) != (goal.at_most is None)


def test_what_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.contenders.base._FOLDERS", ["/nowhere"])
    missing = {contender.name: contender.missing() for contender in CONTENDERS}
    assert missing["ss-libev-aes256"] == "not found: ss-server, ss-local"
    assert missing["microsocks"] == "not found: microsocks"
    assert missing["gsocks-plain"] == missing["none"] == ""


def test_a_run_keeps_within_the_descriptors_that_there_are() -> None:
    assert FULL.within(20_000) == FULL
    small = FULL.within(2400)
    assert (small.idle, small.others, small.stalled) == (1000, (10, 1000), 1000)


# --- the sums -------------------------------------------------------------------------------


def results_of(ours: list[float | None], theirs: list[float | None]) -> dict[str, object]:
    samples = {
        name: [None if value is None else {"cost": value} for value in values]
        for name, values in (("ours", ours), ("theirs", theirs))
    }
    return {"figures": [{"name": "figure", "samples": samples}]}


def judged(ours: list[float | None], theirs: list[float | None], goal: Goal) -> dict[str, object]:
    return summary.judge(results_of(ours, theirs), "figure", vars(goal))


def test_a_ratio_is_taken_within_each_round() -> None:
    # the machine was twice as slow in the second round, for both
    goal = judged([3, 6, 3], [2, 4, 2], Goal("ours", "cost", "theirs", at_most=1.5))
    assert goal["measured"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert goal["met"] is True


def test_a_round_that_failed_for_one_counts_for_neither() -> None:
    goal = judged([3, None, 5], [2, 1, None], Goal("ours", "cost", "theirs", at_most=1.4))
    assert goal["measured"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert goal["met"] is False


def test_a_goal_without_a_peer_is_about_the_measure_itself() -> None:
    goal = judged([7, 9, 8], [], Goal("ours", "cost", at_least=8))
    assert goal["measured"] == {"median": 8, "low": 7, "high": 9}
    assert goal["met"] is True


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    goal = judged([1], [], Goal("ours", "cost", "theirs", at_most=1))
    assert (goal["measured"], goal["met"]) == (None, None)


# --- the document ---------------------------------------------------------------------------


def test_results_replace_what_stood_between_the_markers() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_results(text, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_results(once, "new\n") == once


def test_results_need_their_markers() -> None:
    with pytest.raises(ValueError, match="markers"):
        with_results("no markers", "new")


def test_the_document_says_what_was_measured() -> None:
    results = json.loads((ROOT / "bench" / "results" / "full.json").read_text())
    assert report(results) in DOCUMENT.read_text()
