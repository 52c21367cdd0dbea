"""A snapshot in the words of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gsocks.admin.snapshot import STATES, Json

#: exits that have series of their own; those beyond are counted together as ``other``
MOST_EXITS = 500

#: what :func:`exposition` is
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(snapshot: Json) -> bytes:
    """The metrics of ``snapshot``, as a scrape wants them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _Once:
    """A collector of one snapshot, as prometheus_client wants it."""

    def __init__(self, snapshot: Json) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is collected only to be described

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "gsocks_workers", "Processes that have answered", value=self._snapshot["workers"]
        )
        yield from _doors(self._snapshot["doors"])
        yield from _states(self._snapshot["exits"])
        yield from _exits(self._snapshot["exits"])
        sessions = GaugeMetricFamily(
            "gsocks_sessions", "Sessions that have an exit", labels=["section"]
        )
        for section, count in self._snapshot["sessions"].items():
            sessions.add_metric([section], count)
        yield sessions


def _doors(doors: Json) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "gsocks_connections", "Open connections of clients", labels=["door"]
    )
    requests = CounterMetricFamily(
        "gsocks_requests",
        "Connections that are over, by how they ended",
        labels=["door", "outcome"],
    )
    bytes_ = CounterMetricFamily(
        "gsocks_bytes", "Bytes of connections that are over", labels=["door", "direction"]
    )
    for name, door in doors.items():
        connections.add_metric([name], door["connections"])
        for outcome, count in door["outcomes"].items():
            requests.add_metric([name, outcome], count)
        for direction in ("up", "down"):
            bytes_.add_metric([name, direction], door[direction])
    yield from (connections, requests, bytes_)


def _states(exits: list[Json]) -> Iterator[Metric]:
    family = GaugeMetricFamily("gsocks_exits", "Exits by their state", labels=["section", "state"])
    counted = Counter((each["section"], each["state"]) for each in exits)
    for section in dict.fromkeys(each["section"] for each in exits):
        for state in STATES:
            family.add_metric([section, state], counted[section, state])
    yield family


def _exits(exits: list[Json]) -> Iterator[Metric]:
    labels = ["section", "exit"]
    usable = GaugeMetricFamily("gsocks_exit_usable", "1 if requests are put to it", labels=labels)
    seconds = GaugeMetricFamily(
        "gsocks_exit_connect_seconds", "Decayed average of the time to connect", labels=labels
    )
    sums: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
        "open": GaugeMetricFamily("gsocks_exit_connections", "Open connections", labels=labels),
        "connected": CounterMetricFamily(
            "gsocks_exit_connects", "Requests that it connected", labels=labels
        ),
        "failed": CounterMetricFamily(
            "gsocks_exit_failures", "Requests in which it failed by itself", labels=labels
        ),
        "up": CounterMetricFamily("gsocks_exit_sent_bytes", "Bytes through it", labels=labels),
        "down": CounterMetricFamily(
            "gsocks_exit_received_bytes", "Bytes back through it", labels=labels
        ),
    }
    for each in exits[:MOST_EXITS]:
        which = [each["section"], each["name"]]
        usable.add_metric(which, each["state"] not in ("draining", "banned", "down", "out"))
        seconds.add_metric(which, each["connect_seconds"])
        for name, family in sums.items():
            family.add_metric(which, each[name])
    rest = exits[MOST_EXITS:]
    for section in dict.fromkeys(each["section"] for each in rest):
        for name, family in sums.items():
            count = sum(each[name] for each in rest if each["section"] == section)
            family.add_metric([section, "other"], count)
    yield from (usable, seconds, *sums.values())
