"""Which files the history has: beside the state file, which they must not fill."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gsocks.errors import ConfigError, HistoryFailed
from gsocks.settings import RequestLogSettings

if TYPE_CHECKING:
    from gsocks.history.counter_file import CounterFile
    from gsocks.history.request_file import RequestFile


class StateSettings(Protocol):
    """Where the state file is."""

    @property
    def file(self) -> str | None: ...


def counter_path(state: StateSettings) -> Path:
    """The file of the counters."""
    return Path(f"{state.file}-history")


def request_path(state: StateSettings) -> Path:
    """The file of the request log."""
    return Path(f"{state.file}-requests")


def open_files(
    state: StateSettings | None, requests: RequestLogSettings | None
) -> tuple[CounterFile | None, RequestFile | None]:
    """The files that a config has, each None if it has none.  They are not open yet."""
    if state is None or state.file is None:
        return None, None
    # here, since many programs do without SQLite
    from gsocks.history.counter_file import CounterFile
    from gsocks.history.request_file import RequestFile

    request_file = None
    if requests is not None:
        request_file = RequestFile(request_path(state), requests.max_size)
    return CounterFile(counter_path(state)), request_file


def check_tracing() -> None:
    """Raises ConfigError if there is nothing to trace with."""
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter") is None:
        raise ConfigError("tracing: needs OpenTelemetry (pip install 'gsocks[otel]')")


def describe(state: StateSettings, requests: RequestLogSettings | None) -> list[str]:
    """A line for each file, and what is wrong with it, if something is."""
    lines = []
    for name, file in zip(("history", "requests"), open_files(state, requests), strict=True):
        if file is not None:
            try:
                file.check()
            except HistoryFailed as error:
                lines.append(f"{name}: {error} (it is lost meanwhile, and no request)")
            else:
                lines.append(f"{name}: kept in {file.path}")
    return lines
