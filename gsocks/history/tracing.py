"""Traces of requests for OpenTelemetry: a span for each, with its tries as events.

Imported only where `tracing` is configured, as the SDK is (the extra `otel`).  A span is made when
its request has ended, of what the request log has; a thread of the SDK sends them in batches.  A
collector that takes none loses traces and no request.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from random import Random

from gevent.threadpool import ThreadPool

from gsocks.deadline import call_with_timeout
from gsocks.errors import ConfigError
from gsocks.history.pseudonym import pseudonym
from gsocks.history.requests import host_of
from gsocks.observe import Record
from gsocks.settings import TracingSettings

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError:
    raise ConfigError("tracing needs OpenTelemetry (pip install 'gsocks[otel]')") from None

log = logging.getLogger("gsocks.tracing")

#: spans that wait to be sent; more are lost
MAX_QUEUED = 2048

#: seconds for a batch, all retries together
EXPORT_TIMEOUT = 5.0

#: seconds that a stop waits for the last batch
PATIENCE = 3.0

_BILLION = 1_000_000_000


class _Exporter(SpanExporter):
    """Sends spans by ``inner``, and tells in one line when that begins to fail, or works again."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """In the SDK's thread."""
        try:
            result = self._inner.export(spans)
        except (OSError, ValueError, RuntimeError):
            result = SpanExportResult.FAILURE
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            log.error(
                "%s takes no traces (they are lost meanwhile, and no request)", self._endpoint
            )
        elif self._is_failing and not is_failing:
            log.info("%s takes traces again", self._endpoint)
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        self._inner.shutdown()


class Tracing:
    """See :class:`gsocks.history.history.Also`.  ``key``: of the pseudonyms of hosts; None: they
    are in clear text."""

    #: seconds between two batches
    interval = 2.0

    def __init__(
        self,
        settings: TracingSettings,
        version: str,
        key: bytes | None = None,
        random: Random | None = None,
    ) -> None:
        # its own lines have tracebacks
        logging.getLogger("opentelemetry").propagate = False
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        self._sample = settings.sample
        self._key = key
        self._random = random or Random()  # noqa: S311 - which requests are a sample
        resource = Resource.create(
            {
                "service.name": settings.service,
                "service.version": version,
                "service.instance.id": f"{os.getpid()}",
            }
        )
        inner = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_TIMEOUT)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Exporter(inner, settings.endpoint),
                max_queue_size=MAX_QUEUED,
                schedule_delay_millis=self.interval * 1000,
                export_timeout_millis=EXPORT_TIMEOUT * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("gsocks", version)

    def ended(self, section: str, record: Record, now: float) -> None:
        """Make the span of a request."""
        if self._sample < 1.0 and self._random.random() >= self._sample:
            return
        wall = time.time() - time.monotonic()

        def at(seconds: float) -> int:
            return int((wall + seconds) * _BILLION)

        details, dest, key = record.details, record.dest, self._key
        if key is not None:
            dest = pseudonym(dest, key)
        attributes: dict[str, str | int] = {
            "gsocks.request_id": record.id,
            "gsocks.inbound": record.inbound,
            "gsocks.section": section,
            "gsocks.outcome": record.outcome,
            "gsocks.bytes_up": record.up,
            "gsocks.bytes_down": record.down,
            "client.address": host_of(record.client),
            "server.address": host_of(dest),
        }
        port = dest.rpartition(":")[2]
        if port.isdigit():
            attributes["server.port"] = int(port)
        if record.user is not None:
            attributes["user.name"] = record.user
        if record.session is not None:
            attributes["session.id"] = record.session
        if details is not None:
            attributes["gsocks.exit"] = details.exit
            if details.status:
                attributes["http.response.status_code"] = details.status
        span = self._tracer.start_span(
            record.command or "refused",
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=at(record.start),
        )
        for each in () if details is None else details.tries:
            failed: dict[str, str | float] = {
                "gsocks.exit": each.exit,
                "error.type": each.word,
                "gsocks.seconds": round(each.ended - each.began, 6),
            }
            if key is None and each.detail:
                failed["gsocks.detail"] = each.detail
            span.add_event("try failed", failed, at(each.ended))
        if details is not None and details.connected:
            connected = {"gsocks.exit": details.exit, "gsocks.address": details.address}
            span.add_event("connected", connected, at(details.connected))
        if details is not None and details.answered:
            span.add_event("first byte", timestamp=at(details.answered))
        if record.outcome != "ok":
            span.set_attribute("error.type", record.outcome)
            why = record.detail if key is None else ""
            span.set_status(Status(StatusCode.ERROR, why or record.outcome))
        span.end(at(now))

    def close(self) -> None:
        """Send what there is.  Blocks the calling greenlet, for :data:`PATIENCE` at most."""
        thread = ThreadPool(1)
        call_with_timeout(PATIENCE, thread.apply, self._provider.shutdown, on_timeout=None)
        thread.kill()
