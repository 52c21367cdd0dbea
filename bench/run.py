"""All figures of all contenders, in rounds: A B C A B C.

What changes on the machine from minute to minute so meets every contender alike, and ratios are
taken within a round.  The outcome is one dictionary, which is the results file; everything that is
shown is made from it alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from bench import summary
from bench.contenders import Contender
from bench.figures import Figure
from bench.link import kind_of_link
from bench.processes import ROOT, Failed, raise_descriptor_limit
from bench.progress import Steps
from bench.scale import Scale

#: failures of a contender in a figure after which it is not asked again: each may take a minute
_ENOUGH = 2


def run(figures: Sequence[Figure], contenders: Sequence[Contender], scale: Scale) -> dict[str, Any]:
    """The results.  Shows its progress on stderr."""
    scale = scale.within(raise_descriptor_limit())
    missing = {contender.name: contender.missing() for contender in contenders}
    present = [contender for contender in contenders if not missing[contender.name]]
    results: dict[str, Any] = {
        "about": _about(scale),
        "contenders": [
            {
                "name": contender.name,
                "label": contender.label,
                "kind": contender.kind.value,
                "missing": missing[contender.name],
                "version": "" if missing[contender.name] else contender.version(),
            }
            for contender in contenders
        ],
    }
    for contender in contenders:
        if missing[contender.name]:
            print(f"not measured: {contender.label}: {missing[contender.name]}", file=sys.stderr)
    started = time.monotonic()
    steps = scale.rounds * sum(figure.concerns(who) for figure in figures for who in present)
    with Steps(steps) as progress:
        results["figures"] = [_measure(figure, present, scale, progress) for figure in figures]
    results["about"]["minutes"] = round((time.monotonic() - started) / 60, 1)
    results["about"]["load_after"] = os.getloadavg()[0]
    results["goals"] = judged(results, figures)
    return results


def judged(results: dict[str, Any], figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The goals of the figures that were measured, by the samples in ``results``."""
    measured = {figure["name"] for figure in results["figures"]}
    return [
        summary.judge(results, figure.name, asdict(goal))
        for figure in figures
        if figure.name in measured
        for goal in figure.goals
    ]


def _measure(
    figure: Figure, contenders: Sequence[Contender], scale: Scale, progress: Steps
) -> dict[str, Any]:
    """One figure; a sample that failed is None, and the reason is kept."""
    concerned = [contender for contender in contenders if figure.concerns(contender)]
    samples: dict[str, list[dict[str, float] | None]] = {who.name: [] for who in concerned}
    failures: dict[str, list[str]] = {}
    for number in range(1, scale.rounds + 1):
        for contender in concerned:
            name, sample = contender.name, None
            progress.begin(f"{figure.title}, round {number}: {contender.label}")
            if len(failures.get(name, ())) < _ENOUGH:
                try:
                    sample = figure.sample(contender, scale)
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    failures.setdefault(name, []).append(str(error))
                    progress.tell(f"{figure.title}: {contender.label} failed: {error}")
            samples[name].append(sample)
    return {
        "name": figure.name,
        "title": figure.title,
        "about": figure.about,
        "measures": [asdict(measure) for measure in figure.measures],
        "samples": samples,
        "failures": failures,
    }


def _about(scale: Scale) -> dict[str, Any]:
    """Where, when and of what."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "scale": scale._asdict(),
        "commit": _git("describe", "--always", "--dirty") or "not from a repository",
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(),
        },
        "versions": {
            "Python": platform.python_version(),
            "gevent": version("gevent"),
            "PyNaCl": version("PyNaCl"),
        },
        "link": kind_of_link(),
        # others that were at work when it began, and itself when it ended
        "load_before": os.getloadavg()[0],
    }


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return run.stdout.strip()


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
