"""Metrics by Prometheus' conventions, and the dashboards and alerts that are made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as families

from gsocks.admin import metrics
from gsocks.admin.commands import Commands
from gsocks.admin.counters import MAX_OUTCOMES, ConnectionCounters
from gsocks.admin.snapshot import from_lines, merged, to_lines
from gsocks.histograms import Histogram
from gsocks.history.latency import RequestLatencies
from gsocks.loop_lag import LoopLag
from gsocks.observe import NullObserver
from tests.support.metrics import DASHBOARDS, RULES, expressions, request, snapshot

pytestmark = pytest.mark.usefixtures("never_hangs")


def samples(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families(text)
        for sample in family.samples
    }


def test_times_are_histograms_that_add_up_over_workers() -> None:
    two = merged([snapshot(), from_lines(to_lines(snapshot(seconds=2.0)))])
    found = samples(metrics.exposition(two).decode())
    for name in ("connect", "first_byte", "request_duration"):
        assert found[f"gsocks_{name}_seconds_count[('inbound', 'local')]"] == 2
    bucket = "gsocks_connect_seconds_bucket[('inbound', 'local'), ('le', '{}')]"
    assert found[bucket.format("0.01")] == 0
    assert found[bucket.format("0.025")] == 1
    assert found[bucket.format("1.0")] == 1
    assert found[bucket.format("2.5")] == found[bucket.format("+Inf")] == 2
    assert found["gsocks_connect_seconds_sum[('inbound', 'local')]"] == pytest.approx(2.02)
    assert "gsocks_argon2_seconds_count[]" in found
    assert "gsocks_dns_lookup_seconds_count[]" in found


def test_names_units_and_types_are_those_that_prometheus_recommends() -> None:
    text = metrics.exposition(snapshot()).decode()
    for family in families(text):
        assert re.fullmatch(r"gsocks(_[a-z0-9]+)+", family.name)
        assert family.documentation
        assert not family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_exemplars_name_a_request_only_in_openmetrics_and_only_if_that_is_configured() -> None:
    with_them, without = snapshot(exemplars=True), snapshot()
    assert b"c1-1" not in metrics.exposition(with_them)
    assert b"c1-1" not in metrics.exposition(without, openmetrics=True)
    text = metrics.exposition(with_them, openmetrics=True).decode()
    assert text.endswith("# EOF\n")
    found = [
        sample.exemplar
        for family in openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert len(found) == 3
    assert {each.labels["request_id"] for each in found} == {"c1-1"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", True),
        ("text/plain", False),
        ("", False),
    ],
)
def test_openmetrics_is_what_a_client_asks_for(accept: str, wanted: bool) -> None:
    assert metrics.wants_openmetrics(accept) is wanted


def test_the_number_of_series_is_bounded_whatever_clients_send() -> None:
    latencies = RequestLatencies(exemplars=True)
    counters = ConnectionCounters(NullObserver())
    for number in range(3 * MAX_OUTCOMES):
        record = request(number / 10, f"c1-{number}")
        record.user, record.session = f"user{number}", f"session{number}"
        record.dest, record.outcome = f"host{number}.example:443", f"http_{number}"
        counters.ended(record)
        latencies.ended("local", record, 3.0)
    found = Commands([], {}, counters, LoopLag(lambda _: None), latencies).snapshot()
    found["inbounds"] = {
        "local": {
            "connections": 0,
            "outcomes": dict(counters.inbounds["local"].outcomes),
            "up": 0,
            "down": 0,
        }
    }
    one = found["exits"] = [
        {
            **dict.fromkeys(("open", "connected", "failed", "up", "down"), 1),
            "section": "local",
            "name": f"exit{number}",
            "state": "ok",
            "connect_seconds": 0.1,
        }
        for number in range(2 * metrics.MAX_EXITS)
    ]
    text = metrics.exposition(found).decode()
    assert len(one) > metrics.MAX_EXITS
    assert text.count("gsocks_requests_total{") == MAX_OUTCOMES + 1
    assert text.count("gsocks_exit_connects_total{") == metrics.MAX_EXITS + 1
    assert "user1" not in text
    assert "host1" not in text
    assert len(text.splitlines()) < 10 * metrics.MAX_EXITS


def test_a_histogram_keeps_one_exemplar_of_each_bucket() -> None:
    histogram = Histogram((0.1, 1.0))
    for number in range(10):
        histogram.add(0.05, f"a{number}")
    histogram.add(1.0)
    histogram.add(5.0, "b")
    assert histogram.counts == [10, 1, 1]
    assert {place: each.id for place, each in histogram.exemplars.items()} == {0: "a9", 2: "b"}


# --- what is made of them ---------------------------------------------------------------------


def served_names() -> set[str]:
    """The names of all series that are served."""
    text = metrics.exposition(snapshot()).decode()
    return {sample.name for family in families(text) for sample in family.samples}


def used_names(expression: str) -> set[str]:
    return set(re.findall(r"\bgsocks_\w+", expression))


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def test_the_rules_use_names_that_are_served() -> None:
    for rule in rules():
        assert used_names(rule["expr"]) <= served_names(), rule["alert"]
        assert {"summary"} <= set(rule["annotations"])
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_uses_names_that_are_served(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    for expression in expressions(dashboard):
        names = used_names(expression)
        assert names, expression
        assert names <= served_names(), expression
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
