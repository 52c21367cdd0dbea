"""A snapshot in the exposition format of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.samples import Sample

from gsocks.admin.snapshot import STATES, Json
from gsocks.loop_lag import BUCKETS
from gsocks.turns import give_way

#: exits that have series of their own; those beyond are counted together as ``other``
MAX_EXITS = 500

#: of :func:`exposition`
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(snapshot: Json) -> bytes:
    """The metrics of ``snapshot``, for a scrape; made in turns with the event loop's other work."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _InTurns(list[Sample]):
    """Samples between which others have their turn: prometheus_client writes all in one step."""

    def __iter__(self) -> Iterator[Sample]:
        for sample in super().__iter__():
            give_way()
            yield sample


class _Once:
    """A collector of one snapshot, for prometheus_client."""

    def __init__(self, snapshot: Json) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is collected only to be described

    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            family.samples = _InTurns(family.samples)
            yield family

    def _families(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "gsocks_workers", "Processes that have responded", value=self._snapshot["workers"]
        )
        yield _loop(self._snapshot["loop"])
        yield CounterMetricFamily(
            "gsocks_log_lines_dropped",
            "Lines that the log's reader was too slow for",
            value=self._snapshot["log_dropped"],
        )
        yield CounterMetricFamily(
            "gsocks_user_names_ignored",
            "Logins of user names that select nothing, since their parameters are misspelt",
            value=self._snapshot["ignored_names"],
        )
        yield from _inbounds(self._snapshot["inbounds"])
        yield from _states(self._snapshot["exits"])
        yield from _exits(self._snapshot["exits"])
        sessions = GaugeMetricFamily(
            "gsocks_sessions", "Sessions that have an exit", labels=["section"]
        )
        for section, count in self._snapshot["sessions"].items():
            sessions.add_metric([section], count)
        yield sessions


def _loop(loop: Json) -> Metric:
    bounds = [*map(str, BUCKETS), "+Inf"]
    return HistogramMetricFamily(
        "gsocks_loop_lag_seconds",
        "Turns of the event loop: how long everything else had to wait",
        buckets=list(zip(bounds, loop["turns"], strict=True)),
        sum_value=loop["seconds"],
    )


def _inbounds(inbounds: Json) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "gsocks_connections", "Open connections of clients", labels=["inbound"]
    )
    requests = CounterMetricFamily(
        "gsocks_requests",
        "Closed connections by outcome",
        labels=["inbound", "outcome"],
    )
    bytes_ = CounterMetricFamily(
        "gsocks_bytes", "Bytes of closed connections", labels=["inbound", "direction"]
    )
    for name, inbound in inbounds.items():
        connections.add_metric([name], inbound["connections"])
        for outcome, count in inbound["outcomes"].items():
            requests.add_metric([name, outcome], count)
        for direction in ("up", "down"):
            bytes_.add_metric([name, direction], inbound[direction])
    yield from (connections, requests, bytes_)


def _states(exits: list[Json]) -> Iterator[Metric]:
    family = GaugeMetricFamily("gsocks_exits", "Exits by their state", labels=["section", "state"])
    counted: Counter[tuple[str, str]] = Counter()
    for each in exits:
        counted[each["section"], each["state"]] += 1
        give_way()
    for section in dict.fromkeys(section for section, _ in counted):
        for state in STATES:
            family.add_metric([section, state], counted[section, state])
    yield family


def _exits(exits: list[Json]) -> Iterator[Metric]:
    labels = ["section", "exit"]
    usable = GaugeMetricFamily("gsocks_exit_usable", "1 if it gets requests", labels=labels)
    seconds = GaugeMetricFamily(
        "gsocks_exit_connect_seconds", "Moving average of the time to connect", labels=labels
    )
    sums: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
        "open": GaugeMetricFamily("gsocks_exit_connections", "Open connections", labels=labels),
        "connected": CounterMetricFamily(
            "gsocks_exit_connects", "Requests that it connected", labels=labels
        ),
        "failed": CounterMetricFamily(
            "gsocks_exit_failures", "Requests that it failed by its own fault", labels=labels
        ),
        "up": CounterMetricFamily("gsocks_exit_sent_bytes", "Bytes through it", labels=labels),
        "down": CounterMetricFamily(
            "gsocks_exit_received_bytes", "Bytes back through it", labels=labels
        ),
    }
    for each in exits[:MAX_EXITS]:
        which = [each["section"], each["name"]]
        usable.add_metric(
            which, each["state"] not in ("draining", "banned", "spent", "down", "ejected")
        )
        if each["connect_seconds"] is not None:
            seconds.add_metric(which, each["connect_seconds"])
        for name, family in sums.items():
            family.add_metric(which, each[name])
        give_way()
    others: dict[str, Counter[str]] = {}
    for each in exits[MAX_EXITS:]:
        counted = others.setdefault(each["section"], Counter())
        for name in sums:
            counted[name] += each[name]
        give_way()
    for section, counted in others.items():
        for name, family in sums.items():
            family.add_metric([section, "other"], counted[name])
    yield from (usable, seconds, *sums.values())
