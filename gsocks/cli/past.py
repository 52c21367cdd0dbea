"""Where the history and the request log are, and how their values are written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gsocks import config
from gsocks.errors import ConfigError, HistoryFailed
from gsocks.history.counter_file import CounterFile
from gsocks.history.files import counter_path, request_path
from gsocks.history.request_file import RequestFile


class _State(NamedTuple):
    file: str


class Past:
    """The files, which are only read."""

    def __init__(self, state: str) -> None:
        self.counters = CounterFile(counter_path(_State(state)))
        self.requests = RequestFile(request_path(_State(state)), 1)

    @classmethod
    def of(cls, state: Path | None, path: Path | None) -> Past:
        """Those beside a state file, or beside that of a config.  Raises ConfigError."""
        if state is not None:
            return cls(str(state))
        if path is None:
            raise ConfigError("no config given (-c FILE, or --state FILE: its state file)")
        settings = config.load(path)
        if settings.state is None or settings.state.file is None:
            raise ConfigError(f"{path}: has no state (file: PATH), beside which history is kept")
        return cls(settings.state.file)


def unusable(error: HistoryFailed, hint: str) -> ConfigError:
    """``error`` for the command line; ``hint``: how the file comes about."""
    text = str(error)
    missing = text.endswith(("No such file or directory", "has nothing yet"))
    return ConfigError(f"{text} ({hint})" if missing else text)


# --- values as text ---------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text of a client, for a terminal that it must not control."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def moment(seconds: float) -> str:
    """A time of the wall clock, in UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def milliseconds(seconds: float | None) -> str:
    """``-`` if it is not known."""
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def size(count: float) -> str:
    """Bytes in decimal units, as providers count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> Iterator[str]:
    """Lines of columns; those whose numbers are in ``right`` are set to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
