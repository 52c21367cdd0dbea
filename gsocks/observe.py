"""What happened, for those who run gsocks: one access line for each connection when it ends.

The rooms report to an Observer and never write a line themselves; its null twin costs nothing.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Protocol

_access = logging.getLogger("gsocks.access")


class Record:
    """One connection through a door, filled in on its way."""

    __slots__ = (
        "client",
        "command",
        "dest",
        "detail",
        "door",
        "down",
        "exit",
        "outcome",
        "session",
        "start",
        "up",
        "user",
    )

    def __init__(self, door: str, client: str) -> None:
        self.door = door
        self.client = client
        self.user: str | None = None
        #: what the client named to have the same exit again
        self.session: str | None = None
        #: ``connect``, ``bind`` or ``udp_associate``; empty while that is not known
        self.command = ""
        #: destination, as the client named it; of an association the first one
        self.dest = ""
        #: the way out that served it, without its secrets
        self.exit = ""
        self.up = 0
        self.down = 0
        #: ``ok`` or an error's word
        self.outcome = ""
        #: why, in words; empty if all went well
        self.detail = ""
        #: monotonic seconds
        self.start = time.monotonic()

    def fields(self) -> dict[str, str | int | float]:
        """What the access log shows, in its order."""
        shown: dict[str, str | int | float] = {
            "door": self.door,
            "client": self.client,
            "user": self.user or "-",
            **({} if self.session is None else {"session": self.session}),
            **({"command": self.command} if self.command not in ("", "connect") else {}),
            "dest": self.dest or "-",
            "exit": self.exit or "-",
            "up": self.up,
            "down": self.down,
            "seconds": round(time.monotonic() - self.start, 3),
            "outcome": self.outcome,
        }
        if self.detail:
            shown["detail"] = self.detail
        return shown


class Observer(Protocol):
    """Whoever wants to know."""

    def ended(self, record: Record) -> None:
        """A connection is over.  Must not block."""


class NullObserver:
    """Nobody wants to know."""

    def ended(self, record: Record) -> None:
        """Do nothing."""


class AccessLog:
    """Each connection as one line of the logger ``gsocks.access``."""

    def ended(self, record: Record) -> None:
        """Write the line."""
        if _access.isEnabledFor(logging.INFO):
            fields = record.fields()
            line = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
            _access.info("%s", line, extra={"fields": fields})


def _quoted(value: str | int | float) -> str:
    """As it is where that can't be misread; in JSON's quotes where a client could forge a line."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info gsocks.pool: message``; below it only a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_utc(record.created)} {record.levelname.lower()} {record.name}"
        line = f"{head}: {_printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; an access line's fields stand beside time, level and logger."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line.update(fields if fields is not None else {"message": record.getMessage()})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _utc(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"
