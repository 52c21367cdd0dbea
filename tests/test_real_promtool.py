"""Prometheus' own tool takes the alert rules and the metrics."""

from __future__ import annotations

import subprocess

from gsocks.admin import metrics
from tests.support.metrics import RULES, snapshot
from tests.support.needs import program


def test_promtool_takes_the_rules() -> None:
    promtool = program("promtool", "prometheus")
    subprocess.run([promtool, "check", "rules", str(RULES)], check=True, capture_output=True)


def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    promtool = program("promtool", "prometheus")
    text = metrics.exposition(snapshot())
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")
