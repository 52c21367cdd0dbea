"""What operators see: one access line for each connection at its end, and debug lines on its way.

Modules report to an Observer and never write an access line themselves; NullObserver costs
nothing.  At ``log.level: debug`` a connection also logs what happens to it, each line under its
id, through a :data:`Trace`; at other levels a trace is a function that does nothing.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

_access = logging.getLogger("gsocks.access")
_connection = logging.getLogger("gsocks.connection")

_numbers = itertools.count(1)

#: the process id, which a child has another one of
_process = f"{os.getpid():x}"


def _note_process() -> None:
    global _process
    _process = f"{os.getpid():x}"


os.register_at_fork(after_in_child=_note_process)

#: takes a message and its arguments, as ``Logger.debug`` does
Trace: TypeAlias = Callable[..., None]


def new_connection_id() -> str:
    """An id that no other connection has, in any worker: ``c1a2-17``, of which the first part is
    the process id."""
    return f"{_process}-{next(_numbers)}"


def no_trace(message: str, *args: object) -> None:
    """Do nothing: the level is not debug."""


def trace_of(id: str) -> Trace:  # noqa: A002 - the field's name in the log
    """The trace of the connection or request with that id."""
    return _Trace(id) if _connection.isEnabledFor(logging.DEBUG) else no_trace


class _Trace:
    """Writes debug lines, each under the id."""

    __slots__ = ("_id",)

    def __init__(self, id: str) -> None:  # noqa: A002
        self._id = id

    def __call__(self, message: str, *args: object) -> None:
        _connection.debug(f"%s {message}", self._id, *args, extra={"id": self._id})


#: tries that are told of; a request that is retried has more than exits
MAX_TRIES = 32


class Try(NamedTuple):
    """An exit's try of a request that has failed."""

    #: the exit's name
    exit: str
    #: monotonic seconds: when it began, and when it ended
    began: float
    ended: float
    #: the error's word, as an outcome, and why in words
    word: str
    detail: str


class Details:
    """What is told of a request beyond its access line, if an observer wants it.

    ``story``: whether also how its exit was chosen.
    """

    __slots__ = (
        "address",
        "answered",
        "began",
        "choice",
        "connect",
        "connected",
        "exit",
        "matching",
        "ready",
        "selector",
        "status",
        "story",
        "tries",
    )

    def __init__(self, story: bool = True) -> None:
        self.story = story
        #: the name of the exit that served it, or was tried last
        self.exit = ""
        #: the address that sites see, or else the one that the exit has bound; empty: not known
        self.address = ""
        #: what it asked of the exits: its str is in words
        self.selector: object = ""
        #: the tries that have failed
        self.tries: list[Try] = []
        #: monotonic seconds: when the latest try began; 0: none did
        self.began = 0.0
        #: seconds from the begin of the try until it was connected; None: it was not
        self.connect: float | None = None
        #: monotonic seconds: when it was connected, and when the first byte came back; 0: never
        self.connected = 0.0
        self.answered = 0.0
        #: of an HTTP response, or of an exit's refusal; 0: none
        self.status = 0
        #: exits that matched, and those of them that were ready; None: not known
        self.matching: int | None = None
        self.ready: int | None = None
        #: how the exit was chosen
        self.choice = ""

    def tried(self, exit: str, began: float) -> None:  # noqa: A002
        """An exit is tried."""
        self.exit = exit
        self.began = began

    def failed(self, exit: str, began: float, word: str, detail: str) -> None:  # noqa: A002
        """A try has failed."""
        self.exit = exit
        if len(self.tries) < MAX_TRIES:
            self.tries.append(Try(exit, began, time.monotonic(), word, detail))


class Record:
    """One connection through a listener, or one request of a connection that has many.

    It is filled in on its way.
    """

    __slots__ = (
        "asked",
        "client",
        "command",
        "detail",
        "details",
        "down",
        "exit",
        "id",
        "inbound",
        "is_routine",
        "outcome",
        "session",
        "start",
        "trace",
        "up",
        "user",
    )

    def __init__(
        self,
        inbound: str,
        client: str,
        id: str = "-",  # noqa: A002
        trace: Trace = no_trace,
        start: float | None = None,
    ) -> None:
        #: the connection's; behind a dot the number of the request, if the connection has many
        self.id = id
        #: logs at debug level what happens to it, under its id
        self.trace = trace
        self.inbound = inbound
        self.client = client
        self.user: str | None = None
        #: the name by which the client keeps its exit
        self.session: str | None = None
        #: see :class:`gsocks.request.Command`; empty while that is not known
        self.command = ""
        #: what :attr:`dest` tells in words; not in words yet, which is for who reads it
        self.asked: object = ""
        #: the exit that served it, without its secrets
        self.exit = ""
        self.up = 0
        self.down = 0
        #: ``ok`` or an error's word
        self.outcome = ""
        #: why, in words; empty if all went well
        self.detail = ""
        #: see :attr:`gsocks.errors.GsocksError.is_routine`
        self.is_routine = False
        #: what is told beyond the access line; None: no observer wants that
        self.details: Details | None = None
        #: monotonic seconds
        self.start = time.monotonic() if start is None else start

    @property
    def dest(self) -> str:
        """The destination, as the client named it; of an association the first one."""
        return str(self.asked)

    @dest.setter
    def dest(self, dest: str) -> None:
        self.asked = dest

    def __repr__(self) -> str:
        outcome = self.outcome or "active"
        return (
            f"<Record {self.id} {self.inbound}: {self.client} to {self.dest or '-'}"
            f" by {self.exit or '-'}, {outcome}>"
        )

    def fields(self) -> dict[str, str | int | float]:
        """What the access log shows, in its order."""
        shown: dict[str, str | int | float] = {
            "id": self.id,
            "inbound": self.inbound,
            "client": self.client or "-",
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
    """Gets each record when its connection or request has ended.

    One that has an attribute ``wants_details``, which is true, finds :attr:`Record.details` set;
    with one ``wants_story`` that is false without how exits were chosen, which costs more to find.
    """

    def ended(self, record: Record) -> None:
        """Runs in the hub or in a connection's greenlet: it must not block."""


class NullObserver:
    """For listeners without an observer."""

    def ended(self, record: Record) -> None:
        """Do nothing."""


class AccessLog:
    """Writes each record as one line of the logger ``gsocks.access``."""

    def ended(self, record: Record) -> None:
        """Write the line, at debug level if the record is routine."""
        level = logging.DEBUG if record.is_routine else logging.INFO
        if _access.isEnabledFor(level):
            fields = record.fields()
            line = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
            _access.log(level, "%s", line, extra={"fields": fields})


def _quoted(value: str | int | float) -> str:
    """Unquoted where that is unambiguous; as a JSON string where a client could forge a line."""
    text = str(value)
    return text if _is_plain(text) else json.dumps(text)


#: printable ASCII but space, quote, equals sign and backslash
_is_plain = re.compile(r"[!#-<>-\[\]-~]*").fullmatch


#: the number of this worker in the log; None: there is one process
_worker: int | None = None


def log_as_worker(number: int) -> None:
    """Put the number of this worker process into all lines that follow."""
    global _worker
    _worker = number


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info gsocks.pool: message``; below it only a traceback.

    With workers ``[worker 1]`` stands before the colon.
    """

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_utc(record.created)} {record.levelname.lower()} {record.name}"
        if _worker is not None:
            head += f" [worker {_worker}]"
        line = f"{head}: {_printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; an access line's fields stand beside time, level and logger.

    A debug line of a connection has its ``id`` as a field too.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if _worker is not None:
            line["worker"] = _worker
        fields = getattr(record, "fields", None)
        connection_id = getattr(record, "id", None)
        if connection_id is not None:
            line["id"] = connection_id
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
