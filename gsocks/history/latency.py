"""Histograms of the times of requests, for each listener's name in the log."""

from __future__ import annotations

from collections.abc import Iterable

from gsocks.histograms import OF_CONNECTING, OF_REQUESTS, Histogram
from gsocks.observe import Record


class Latencies:
    """Times of one listener's requests."""

    __slots__ = ("connect", "duration", "first_byte")

    def __init__(self) -> None:
        #: to connect, from the begin of the try that was
        self.connect = Histogram(OF_CONNECTING)
        #: to the first byte, from the request's begin
        self.first_byte = Histogram(OF_CONNECTING)
        self.duration = Histogram(OF_REQUESTS)


class RequestLatencies:
    """See :class:`gsocks.history.history.Also`; ``exemplars``: whether ids of requests are kept."""

    def __init__(self, *, exemplars: bool = False) -> None:
        self._exemplars = exemplars
        self.inbounds: dict[str, Latencies] = {}

    def expect(self, inbounds: Iterable[str]) -> None:
        """Have histograms of these listeners from the beginning, as rates need their zeros."""
        for name in inbounds:
            self.inbounds.setdefault(name, Latencies())

    def close(self) -> None:
        """There is nothing to close."""

    def ended(self, _section: str, record: Record, now: float) -> None:
        """A request has ended."""
        times = self.inbounds.get(record.inbound)
        if times is None:
            times = self.inbounds[record.inbound] = Latencies()
        name = record.id if self._exemplars else ""
        times.duration.add(now - record.start, name)
        details = record.details
        if details is None or details.connect is None:
            return
        times.connect.add(details.connect, name)
        if details.answered:
            times.first_byte.add(details.answered - record.start, name)
