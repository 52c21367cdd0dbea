"""A snapshot with something of everything, and the rules that are shipped for Prometheus."""

from __future__ import annotations

from typing import Any

from gsocks.admin.commands import Commands
from gsocks.admin.counters import ConnectionCounters
from gsocks.admin.snapshot import Json
from gsocks.history.latency import RequestLatencies
from gsocks.loop_lag import LoopLag
from gsocks.observe import Details, NullObserver, Record
from tests.support.program import ROOT

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))


def request(seconds: float = 0.02, request_id: str = "c1-1") -> Record:
    record = Record("local", "192.0.2.1:5000", request_id, start=0.0)
    record.outcome = "ok"
    details = record.details = Details()
    details.connect, details.answered = seconds, 2 * seconds
    return record


def commands(latencies: RequestLatencies) -> Commands:
    counters = ConnectionCounters(NullObserver())
    counters.ended(request())
    return Commands([], {}, counters, LoopLag(lambda _: None), latencies)


def snapshot(*, exemplars: bool = False, seconds: float = 0.02) -> Json:
    latencies = RequestLatencies(exemplars=exemplars)
    latencies.ended("local", request(seconds), 3.0)
    found = commands(latencies).snapshot()
    exit_ = dict.fromkeys(("open", "connected", "failed", "up", "down"), 1)
    found["exits"] = [
        {**exit_, "section": "local", "name": "a", "state": "ok", "connect_seconds": 0.1}
    ]
    found["inbounds"] = {
        "local": {"connections": 1, "outcomes": {"ok": 1}, "up": 1, "down": 1, "listen": []}
    }
    found["sessions"] = {"local": 1}
    return found


def expressions(dashboard: Any) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    lists = dashboard["templating"]["list"]
    return found + [each["query"]["query"] for each in lists if isinstance(each["query"], dict)]
