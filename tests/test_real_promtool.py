"""Prometheus' own tool takes the alert rules, the metrics, and what the dashboards ask."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from gsocks.admin import metrics
from tests.support.metrics import DASHBOARDS, RULES, expressions, snapshot
from tests.support.needs import program


def test_promtool_takes_the_rules() -> None:
    promtool = program("promtool", "prometheus")
    subprocess.run([promtool, "check", "rules", str(RULES)], check=True, capture_output=True)


def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    promtool = program("promtool", "prometheus")
    text = metrics.exposition(snapshot())
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_promtool_takes_what_the_dashboards_ask(path: Path, tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    asked = [
        # what Grafana puts in
        expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
        for expression in expressions(json.loads(path.read_text()))
        # a list of labels is Grafana's own query
        if not expression.startswith("label_values(")
    ]
    assert len(asked) > 3
    rules = [{"record": f"asked_{number}", "expr": each} for number, each in enumerate(asked)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()
