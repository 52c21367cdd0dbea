"""A snapshot in the exposition format of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.samples import Exemplar, Sample

from gsocks.admin.snapshot import STATES, Json
from gsocks.loop_lag import BUCKETS
from gsocks.turns import give_way

#: exits that have series of their own; those beyond are counted together as ``other``
MAX_EXITS = 500

#: of :func:`exposition`, and of that in OpenMetrics
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: what each histogram is about; those with a listener have its label
_HISTOGRAMS = {
    "connect": "Times until an exit had connected a request, from the begin of that try",
    "first_byte": "Times until the first byte came back, from the begin of the request",
    "duration": "Times of requests from their begin to their end",
    "argon2": "Verifications of passwords",
    "dns_lookup": "Questions to name servers",
}
_NAMES = {"duration": "request_duration"}


def wants_openmetrics(accept: str) -> bool:
    """Whether a client's Accept field asks for OpenMetrics."""
    return "application/openmetrics-text" in accept


def exposition(snapshot: Json, *, openmetrics: bool = False) -> bytes:
    """The metrics of ``snapshot``, for a scrape; made in turns with the event loop's other work.

    Only ``openmetrics`` has exemplars.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    if not openmetrics:
        return generate_latest(registry)
    written: bytes = openmetrics_latest(registry)  # type: ignore[no-untyped-call]
    return written


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
        yield CounterMetricFamily(
            "gsocks_requests_lost",
            "Requests that the request log could not take",
            value=self._snapshot.get("requests_lost", 0),
        )
        yield from _histograms(self._snapshot.get("histograms", {}))
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


def _histograms(histograms: Json) -> Iterator[Metric]:
    for what, text in _HISTOGRAMS.items():
        named = histograms.get(what, {})
        labels = [] if "" in named else ["inbound"]
        name = f"gsocks_{_NAMES.get(what, what)}_seconds"
        family = HistogramMetricFamily(name, text, labels=labels)
        for inbound, of in named.items():
            # bounds as text, with the one beyond all
            bounds = [*map(str, of["bounds"]), "+Inf"]
            counts = accumulate(of["counts"])
            buckets: list[Any] = [
                (bound, count, _exemplar(of["exemplars"].get(str(place))))
                for place, (bound, count) in enumerate(zip(bounds, counts, strict=True))
            ]
            family.add_metric([inbound] if labels else [], buckets, of["seconds"])
        yield family


def _exemplar(found: list[Any] | None) -> Exemplar | None:
    if found is None:
        return None
    name, seconds, at = found
    return Exemplar({"request_id": name}, seconds, at)


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
