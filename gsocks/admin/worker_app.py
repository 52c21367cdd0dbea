"""What a worker answers the other workers, at its Unix socket: no token is needed there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

from gsocks.admin import history, snapshot
from gsocks.admin.commands import Commands
from gsocks.admin.control import Control
from gsocks.admin.problems import PROBLEM, ApiError, invalid, not_found
from gsocks.admin.routes import JSON, MAX_BODY
from gsocks.admin.snapshot import WantedExits, WantedSessions
from gsocks.admin.wsgi import AUTHENTICATED, Environ, StartResponse, raw_target, start
from gsocks.history.series import Counters

log = logging.getLogger("gsocks.admin")


class WorkerApp:
    """Answers for this process alone.

    ``counters``: those of this process, by time; None: there are none.  ``control``: the service;
    ``revoke``: is told the session of the dashboard that was signed out of.
    """

    def __init__(
        self,
        commands: Commands,
        counters: Counters | None = None,
        control: Control | None = None,
        revoke: Callable[[str], None] | None = None,
    ) -> None:
        self._commands = commands
        self._counters = counters
        self._control = control
        self._revoke = revoke

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI's entry (PEP 3333)."""
        environ[AUTHENTICATED]()
        kind = JSON
        try:
            status = HTTPStatus.OK
            kind, body = self._respond(environ)
        except ApiError as error:
            status, kind, body = error.status, PROBLEM, error.as_json()
        start(start_response, status, kind, len(body))
        return [body]

    def _respond(self, environ: Environ) -> tuple[str, bytes]:
        path, _, text = raw_target(environ).partition("?")
        segments = [unquote(each) for each in path.split("/")[1:]]
        pairs = parse_qsl(text, keep_blank_values=True)
        query = dict(pairs)
        if environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read(MAX_BODY + 1)
            self._execute(segments, query, body)
            return JSON, b'{"done": true}\n'
        return self._get(segments, query, [value for name, value in pairs if name == "name"])

    def _get(
        self, path: list[str], query: Mapping[str, str], names: list[str]
    ) -> tuple[str, bytes]:
        match path:
            case ["own", "snapshot"]:
                own = self._commands.snapshot(
                    query.get("which", snapshot.ALL),
                    int(query["most"]) if "most" in query else None,
                    _wanted_exits(query),
                    domains=query.get("domains") != "0",
                    figures=_figures(query),
                )
                return "application/x-ndjson", snapshot.to_lines(own)
            case ["own", "exits"]:
                parts = (each.partition("/") for each in names)
                return _json(self._commands.exits_named((one, two) for one, _, two in parts))
            case ["own", "sessions"]:
                texts = {name: query.get(name, "") for name in WantedSessions._fields[:-1]}
                wanted = WantedSessions(**texts, before=float(query.get("before", "inf")))
                return _json(self._commands.sessions(int(query["limit"]), wanted))
            case ["own", "users"]:
                opened = {} if self._control is None else self._control.open_connections()
                return _json(dict(opened))
            case ["own", "history", what] if self._counters is not None:
                return _json(_own_history(self._counters, what, query, names))
        raise not_found("no such path")

    def _execute(self, path: list[str], query: Mapping[str, str], body: bytes) -> None:
        match path:
            case ["own", "changes"]:
                if self._control is not None:
                    self._control.take_changes()
            case ["own", "revoked"]:
                if self._revoke is not None:
                    self._revoke(body.decode("ascii", "replace"))
            case ["v1", *command]:
                self._commands.execute(command, query.get("section", ""), body)
            case _:
                raise not_found("no such path")


def _wanted_exits(query: Mapping[str, str]) -> WantedExits:
    return WantedExits(*(query.get(name, "") for name in WantedExits._fields))


def _figures(query: Mapping[str, str]) -> list[str] | None:
    if "figures" not in query:
        return None
    return [each for each in query["figures"].split(",") if each in snapshot.FIGURES]


def _own_history(counters: Counters, what: str, query: Mapping[str, str], names: list[str]) -> Any:
    try:
        return history.own(counters, what, query, names)
    except ValueError as error:
        raise invalid(str(error)) from None


def _json(value: object) -> tuple[str, bytes]:
    return JSON, snapshot.to_json(value)
