"""Traces for OpenTelemetry: a span for each request, and nothing at all where it is off."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gsocks.history import tracing as tracing_module
from gsocks.history.tracing import Tracing
from gsocks.observe import Details, Record, Try
from gsocks.settings import TracingSettings
from tests.support.ports import free_port
from tests.support.program import UNTRACED

pytestmark = pytest.mark.usefixtures("never_hangs")


class Collector:
    """Takes traces by OTLP over HTTP."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.server = WSGIServer(("127.0.0.1", 0), self._take, log=None)

    @property
    def settings(self) -> TracingSettings:
        url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        return TracingSettings(endpoint=url)

    def _take(self, environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start_response(self.status, [("Content-Length", "0")])
        if self.status == "200 OK":
            sent = ExportTraceServiceRequest.FromString(body)
            for each in sent.resource_spans:
                self.resources.append(plain(each.resource.attributes))
                for scope in each.scope_spans:
                    self.spans += scope.spans
        return [b""]


def plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    found.server.start()
    yield found
    found.server.stop(0)


def ended(outcome: str = "ok") -> Record:
    now = time.monotonic()
    record = Record("local", "192.0.2.1:5000", "c1-1", start=now - 2.0)
    record.user, record.session, record.command = "ann", "s1", "connect"
    record.dest, record.outcome, record.up, record.down = "www.example.com:443", outcome, 10, 100
    record.detail = "" if outcome == "ok" else "www.example.com:443: refused"
    details = record.details = Details()
    details.exit, details.address = "berlin-1", "198.51.100.7"
    details.tries = [Try("paris-1", now - 2.0, now - 1.5, "timed_out", "www.example.com: slow")]
    if outcome == "ok":
        details.connected, details.answered = now - 1.0, now - 0.5
    return record


def test_a_request_is_a_span_with_its_tries_as_events(collector: Collector) -> None:
    tracing = Tracing(collector.settings, "1.2.3")
    tracing.ended("local", ended(), time.monotonic())
    tracing.close()
    (span,) = collector.spans
    assert span.name == "connect"
    attributes = plain(span.attributes)
    assert attributes["gsocks.exit"] == "berlin-1"
    assert (attributes["server.address"], attributes["server.port"]) == ("www.example.com", 443)
    assert (attributes["client.address"], attributes["user.name"]) == ("192.0.2.1", "ann")
    assert (attributes["gsocks.bytes_up"], attributes["gsocks.bytes_down"]) == (10, 100)
    assert [event.name for event in span.events] == ["try failed", "connected", "first byte"]
    assert plain(span.events[0].attributes)["error.type"] == "timed_out"
    times = [
        span.start_time_unix_nano,
        *(event.time_unix_nano for event in span.events),
        span.end_time_unix_nano,
    ]
    assert times == sorted(times)
    assert 1.9e9 < times[-1] - times[0] < 2.5e9
    (resource,) = collector.resources
    assert (resource["service.name"], resource["service.version"]) == ("gsocks", "1.2.3")


def test_a_request_that_failed_is_an_error(collector: Collector) -> None:
    tracing = Tracing(collector.settings, "1")
    tracing.ended("local", ended("refused"), time.monotonic())
    tracing.close()
    (span,) = collector.spans
    assert span.status.code == 2
    assert span.status.message == "www.example.com:443: refused"
    assert plain(span.attributes)["error.type"] == "refused"


def test_with_redaction_no_host_leaves_the_process(collector: Collector) -> None:
    tracing = Tracing(collector.settings, "1", key=b"k" * 32)
    tracing.ended("local", ended("refused"), time.monotonic())
    tracing.close()
    assert "example" not in str(collector.spans)
    assert plain(collector.spans[0].attributes)["server.address"].startswith("h-")


def test_what_has_no_details_and_no_destination_is_a_span_too(collector: Collector) -> None:
    tracing = Tracing(collector.settings, "1")
    tracing.ended("local", Record("local", "[2001:db8::1]:5000", "c1-2"), time.monotonic())
    tracing.close()
    (span,) = collector.spans
    assert span.name == "refused"
    assert plain(span.attributes)["client.address"] == "2001:db8::1"


def test_of_a_sample_a_part_is_sent(collector: Collector) -> None:
    settings = TracingSettings(endpoint=collector.settings.endpoint, sample=0.5)
    tracing = Tracing(settings, "1")
    for _ in range(100):
        tracing.ended("local", ended(), time.monotonic())
    tracing.close()
    assert 20 < len(collector.spans) < 80


def test_a_collector_that_takes_none_is_told_of_in_one_line(
    collector: Collector, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    collector.status = "400 Bad Request"
    tracing = Tracing(collector.settings, "1")
    for _ in range(2):
        tracing.ended("local", ended(), time.monotonic())
    tracing.close()
    told = [record for record in caplog.records if record.name == "gsocks.tracing"]
    assert [record.levelno for record in told] == [logging.ERROR]
    assert told[0].getMessage() == (
        f"{collector.settings.endpoint} takes no traces (they are lost meanwhile, and no request)"
    )
    assert "Traceback" not in capfd.readouterr().err


def test_a_collector_that_is_not_there_holds_up_a_stop_for_no_longer_than_its_patience() -> None:
    settings = TracingSettings(endpoint=f"http://127.0.0.1:{free_port()}/v1/traces")
    tracing = Tracing(settings, "1")
    tracing.ended("local", ended(), time.monotonic())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing_module, "PATIENCE", 0.05)
        tracing.close()  # never_hangs bounds it; the SDK would try for seconds


def test_without_tracing_nothing_of_it_is_imported_and_without_state_no_sqlite() -> None:
    code = """
import sys
from gsocks import config
from gsocks.service.service import Service
from pathlib import Path
settings = config.parse("local: {listen: '127.0.0.1:0'}\\nadmin: {listen: '127.0.0.1:0'}", Path())
service = Service(Path("c.yaml"), settings)
assert service._make_history() is not None
found = {name.partition(".")[0] for name in sys.modules}
assert not found & {"opentelemetry", "sqlite3", "prometheus_client", "requests"}, found
off = config.parse("local: {listen: '127.0.0.1:0'}", Path())
assert Service(Path("c.yaml"), off)._make_history() is None
"""
    subprocess.run([*UNTRACED, sys.executable, "-c", code], check=True)
