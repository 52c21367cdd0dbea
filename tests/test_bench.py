"""The benchmark: that its quick form runs, that it sums up rightly, that it leaves nothing behind.

No time is asserted, nor any other number that a machine could be too slow for.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import comparison, processes, summary
from bench.contenders import CONTENDERS
from bench.document import BEGIN, DOCUMENT, END, with_results
from bench.figures import FIGURES
from bench.figures.base import Goal
from bench.fleet.contenders import FLEETS
from bench.fleet.figures import FLEET_FIGURES
from bench.gateway import figures
from bench.gateway.clients import SITES, Result, by_connect, site_of
from bench.gateway.contenders import GATEWAYS
from bench.gateway.figures import EXITS, GATEWAY_FIGURES, ports_of_exits
from bench.load.route import Place
from bench.processes import ROOT
from bench.report import report
from bench.run import judged as judged_anew
from bench.scale import FULL
from tests.support.waiting import TOO_LONG, eventually

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
    said, progress = run.communicate(timeout=3 * TOO_LONG)
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


def test_every_build_of_gsocks_itself_can_be_measured() -> None:
    own = [one for one in (*CONTENDERS, *GATEWAYS, *FLEETS) if one.name.startswith("gsocks")]
    assert [one.obstacle() for one in own if one.obstacle()] == []


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
    # the benchmark itself, the target, a server
    eventually(lambda: len(processes.family([run.pid])) >= 3)
    family = processes.family([run.pid])
    run.send_signal(signum)
    run.communicate(timeout=TOO_LONG)
    assert run.returncode == 128 + signum
    # one that was being started just then is ended by the kernel, a moment after the benchmark
    eventually(lambda: not any(map(_lives, family)))
    assert not list(tmp_path.iterdir())


def test_a_run_of_rotating_proxies_ends_with_all_its_processes_too() -> None:
    command = [sys.executable, "-m", "bench.gateway", "--quick", "--contenders", "gsocks"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    eventually(lambda: len(processes.family([run.pid])) >= 3)
    family = processes.family([run.pid])
    run.send_signal(signal.SIGTERM)
    assert b"interrupted: " in run.communicate(timeout=TOO_LONG)[1]
    assert run.returncode == 128 + signal.SIGTERM
    eventually(lambda: not any(map(_lives, family)))


def test_a_quick_run_measures_a_rotating_proxy() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gateway", "--quick", "--contenders", "gsocks"]
        + ["--figures", "gateway_socks5", "gateway_absolute", "gateway_bad_exits"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * TOO_LONG,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "failed" not in run.stdout.partition("### SOCKS5")[2].replace("has failed", "")
    for title in ("### SOCKS5", "### Absolute form, kept alive", "### Bad exits"):
        assert title in run.stdout


def test_a_quick_run_measures_what_sharing_costs() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.fleet", "--quick", "--contenders", "fleet-2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * TOO_LONG,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "failed" not in run.stderr
    assert re.search(
        r"What sharing costs, operations a request +\| two gateways +\| +<= 1 \| +[\d.]+ ",
        run.stdout,
    )
    # of so few requests none may have had any, while a gateway without work tells that it lives
    ((*_, ratio, _, idle, _),) = re.findall(
        r"^\| two gateways" + 6 * r" +\| +([\d.]+)", run.stdout, re.M
    )
    assert float(ratio) > 0
    assert float(idle) > 0
    assert "### A store that is far away" in run.stdout


def test_bad_exits_lie_evenly_among_the_good_ones() -> None:
    ports = ports_of_exits(200, 1, (0.2, 2), (0.05, 3))
    assert Counter(ports) == {1: 150, 2: 40, 3: 10}
    assert Counter(ports[:100]) == {1: 75, 2: 20, 3: 5}


def test_a_request_of_a_gateway_costs_no_cpu_that_was_used_while_nothing_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = 0.0

    def wait(pids: Sequence[int]) -> None:
        nonlocal used
        used += 10.0  # probes of exits, say

    def load(gateway: Place, talk: object, requests: int, **_: object) -> Result:
        nonlocal used
        used += requests * 0.001
        return Result([0.1] * requests, 0, 2.0)

    monkeypatch.setattr(figures, "settle", wait)
    monkeypatch.setattr(figures, "load", load)
    monkeypatch.setattr(processes, "cpu_seconds", lambda pids: used)
    running = figures.Running(Place("127.0.0.1", 1), [1], 0.5)
    assert running.cost(by_connect, 100)["cpu"] == pytest.approx(1000.0)


# what coverage and gevent load too: a hook at each fork, in which an exception is only reported
HOOKED = """
import logging, os, signal, sys
from pathlib import Path
from bench import processes, signals
signals.handle()
signum = signal.Signals(int(sys.argv[1]))
os.register_at_fork(**{sys.argv[2]: lambda: signal.raise_signal(signum)})
try:
    with processes.ended_after([processes.start(["sleep", "60"], Path.cwd())]):
        print("not interrupted")
except signals.Interrupted as interrupted:
    print(interrupted.status)
"""

# a finalizer that is interrupted: Python reports the exception and goes on
FINALIZED = """
import os, signal, sys
from bench import signals
from bench.progress import Steps
class Late:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1_000_000):
            pass
signals.handle()
try:
    with Steps(1):
        late = Late()
        del late
    print("not interrupted")
except signals.Interrupted as interrupted:
    print(interrupted.status)
"""


def said_by(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG)
    return run.stdout.strip()


@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_a_process_is_forked_is_not_lost(
    signum: int, moment: str
) -> None:
    assert said_by(HOOKED, int(signum), moment) == str(128 + signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_python_drops_ends_the_run_after_the_step(signum: int) -> None:
    assert said_by(FINALIZED, int(signum)) == str(128 + signum)


# --- who is measured, and by what -----------------------------------------------------------


def test_each_goal_is_about_something_that_is_measured() -> None:
    names = {contender.name for contender in (*CONTENDERS, *GATEWAYS, *FLEETS)}
    for figure in (*FIGURES, *GATEWAY_FIGURES, *FLEET_FIGURES):
        for goal in figure.goals:
            assert goal.contender in names
            assert goal.versus in names | {""}
            assert goal.measure in {measure.key for measure in figure.measures}
            assert (goal.at_least is None) != (goal.at_most is None)


def test_what_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.contenders.base._FOLDERS", ["/nowhere"])
    missing = {contender.name: contender.missing() for contender in CONTENDERS}
    assert missing["ss-libev-aes256"] == "not found: ss-server, ss-local"
    assert missing["sing-box-2022"] == missing["sing-box"] == "not found: sing-box"
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


def test_the_document_judges_the_run_by_the_goals_of_today() -> None:
    results = json.loads((ROOT / "bench" / "results" / "full.json").read_text())
    assert results["goals"] == judged_anew(results, FIGURES)


def test_the_comparison_has_what_was_measured_and_nothing_else() -> None:
    text = comparison.document()
    assert comparison.DOCUMENT.read_text() == text
    for name, own, title in comparison.TABLES:
        results = json.loads((comparison.RESULTS / f"{name}.json").read_text())
        part = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
        kind = next(each["kind"] for each in results["contenders"] if each["name"] == own)
        for each in results["contenders"]:
            is_there = f"| {each['label']} |" in part
            was_measured = any(any(f["samples"].get(each["name"], [])) for f in results["figures"])
            if each["name"].startswith("gsocks"):
                assert is_there == (each["name"] == own)
            else:
                assert is_there == (each["kind"] == kind and was_measured)


def test_each_exit_gets_every_site_before_it_gets_one_again() -> None:
    asked = {(number % EXITS, site_of(number, EXITS)) for number in range(EXITS * SITES)}
    assert len(asked) == EXITS * SITES
