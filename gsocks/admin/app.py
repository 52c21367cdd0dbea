"""The JSON API, as a WSGI application.

    GET  /status                                     listeners, workers, counts, the loops' lag
    GET  /exits                                      all exits; ?section= ?state= ?country= ?tag=
    GET  /exits/NAME                                 one exit, with the domains it is ejected for
    POST /exits/NAME/ban      {seconds, domain?}     don't use it, or not for a domain
    POST /exits/NAME/unban    {domain?}              use it again
    POST /exits/NAME/drain    /exits/NAME/undrain    no new requests; use it again
    POST /exits/NAME/report   {domain, ok, reason?}  whether it serves a domain
    GET  /sessions                                   sessions and their exits, latest first; ?limit=
    POST /sessions/rotate     {session, user?}       move the session to another exit
    POST /sessions/report     {session, user?, domain, ok, reason?}
    GET  /metrics                                    for Prometheus

Each request carries the token: ``Authorization: Bearer TOKEN``.  A command for the exits of the
server has ``?section=server``; without it, those of local are meant if there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote

from gsocks.admin import history, snapshot
from gsocks.admin.commands import ApiError, Commands
from gsocks.admin.peers import Peers
from gsocks.admin.snapshot import Json
from gsocks.history.series import Counters
from gsocks.http.status import reason_phrase

#: bytes of a request's body
MAX_BODY = 65536

#: sessions of a section that are listed without ?limit=, and the maximum with it
DEFAULT_SESSIONS = 1000
MAX_SESSIONS = 100_000

#: in the WSGI environment: to be called when a request has shown the token
AUTHENTICATED = "gsocks.authenticated"

Environ: TypeAlias = Mapping[str, Any]
StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]


class App:
    """Answers for this process and for its peers.

    ``token`` None: no token is needed, as at a worker's own Unix socket.  ``counters``: those of
    this process, by time; None: there are none.
    """

    def __init__(
        self,
        commands: Commands,
        peers: Peers,
        token: str | None,
        counters: Counters | None = None,
    ) -> None:
        self._commands = commands
        self._counters = counters
        self._peers = peers
        self._token = None if token is None else f"Bearer {token}".encode()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI's entry (PEP 3333)."""
        more: list[tuple[str, str]] = []
        try:
            self._authenticate(environ)
            environ[AUTHENTICATED]()
            status, (kind, body) = HTTPStatus.OK, self._respond(environ)
        except ApiError as error:
            status, (kind, body) = error.status, _json({"error": str(error)})
            if status is HTTPStatus.UNAUTHORIZED:
                more = [("WWW-Authenticate", 'Bearer realm="gsocks"'), ("Connection", "close")]
        fields = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response(
            f"{status.value} {reason_phrase(status)}",
            [*fields, ("Cache-Control", "no-store"), *more],
        )
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _authenticate(self, environ: Environ) -> None:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("utf-8", "surrogateescape")
        if self._token is not None and not compare_digest(given, self._token):
            raise ApiError(HTTPStatus.UNAUTHORIZED, "expected Authorization: Bearer TOKEN")

    def _respond(self, environ: Environ) -> tuple[str, bytes]:
        """Content type and body of the response.  Raises ApiError."""
        path = str(environ.get("PATH_INFO", "")).split("/")[1:]
        parsed = parse_qs(str(environ.get("QUERY_STRING", "")))
        query = {name: values[-1] for name, values in parsed.items()}
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._get(path, query, str(environ.get("HTTP_ACCEPT", "")))
        if environ["REQUEST_METHOD"] == "POST":
            self._execute(environ, path, query)
            return _json({"done": True})
        raise ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET, or POST for commands")

    # --- queries ----------------------------------------------------------------------------

    def _get(self, path: list[str], query: Mapping[str, str], accept: str) -> tuple[str, bytes]:
        match path:
            case ["own", "snapshot"] if self._token is None:
                most = int(query["most"]) if "most" in query else None
                own = self._commands.snapshot(query.get("which", snapshot.ALL), most)
                return "application/x-ndjson", snapshot.to_lines(own)
            case ["own", "sessions"] if self._token is None:
                return _json(self._commands.sessions(_limit(query)))
            case ["own", "history", what] if self._token is None and self._counters is not None:
                return _json(_own_history(self._counters, what, query))
            case ["status"]:
                state = self._snapshot(snapshot.NONE)
                named = {
                    name: state[name] for name in ("workers", "inbounds", "sessions", "log_dropped")
                }
                return _json({**named, "loop": snapshot.loop_lag(state)})
            case ["exits"]:
                return _json(_filtered(self._snapshot()["exits"], query))
            case ["exits", name]:
                return _json(_one(self._snapshot(name), name, query))
            case ["sessions"]:
                return _json(self._sessions(_limit(query)))
            case ["metrics"]:
                return self._metrics(accept)
        raise ApiError(HTTPStatus.NOT_FOUND, "known: /status, /exits, /sessions, /metrics")

    def _snapshot(self, which: str = snapshot.ALL) -> Json:
        others = self._peers.snapshots(which)
        return snapshot.merged([self._commands.snapshot(which), *others])

    def _sessions(self, limit: int) -> list[Json]:
        found = self._commands.sessions(limit)
        for response in self._peers.ask("GET", f"/own/sessions?limit={limit}"):
            found += response.body
        # of a session that several workers know, the state at the one that used it last
        found.sort(key=lambda each: each["idle"])
        latest: dict[tuple[str, ...], Json] = {}
        for each in found:
            latest.setdefault((each["section"], each["user"] or "", each["session"]), each)
        return list(latest.values())[:limit]

    def _metrics(self, accept: str) -> tuple[str, bytes]:
        try:
            from gsocks.admin import metrics
        except ImportError:
            raise ApiError(
                HTTPStatus.NOT_IMPLEMENTED,
                "metrics need prometheus_client (pip install 'gsocks[metrics]')",
            ) from None
        if metrics.wants_openmetrics(accept):
            return metrics.OPENMETRICS, metrics.exposition(self._snapshot(), openmetrics=True)
        return metrics.CONTENT_TYPE, metrics.exposition(self._snapshot())

    # --- commands ---------------------------------------------------------------------------

    def _execute(self, environ: Environ, path: list[str], query: Mapping[str, str]) -> None:
        body = _read_body(environ)
        target = quote(str(environ["PATH_INFO"]), encoding="latin-1")
        if environ.get("QUERY_STRING"):
            target += f"?{environ['QUERY_STRING']}"
        others = [response.status for response in self._peers.ask("POST", target, body)]
        try:
            self._commands.execute(path, query.get("section"), body)
        except ApiError as error:
            # a session may be known to another worker alone
            if error.status is not HTTPStatus.NOT_FOUND or HTTPStatus.OK not in others:
                raise


def _read_body(environ: Environ) -> bytes:
    # read() stops at the end of the body, whether that has a Content-Length or is chunked
    body: bytes = environ["wsgi.input"].read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY} bytes")
    return body


def _filtered(exits: list[Json], query: Mapping[str, str]) -> list[Json]:
    """Those that match, each filter in a few milliseconds."""
    for name, value in query.items():
        if name not in ("section", "state", "country", "tag"):
            raise ApiError(HTTPStatus.BAD_REQUEST, f"no such filter: {name}")
        if name == "tag":
            exits = [each for each in exits if value in each["tags"]]
        else:
            exits = [each for each in exits if each[name] == value]
    return exits


def _one(state: Json, name: str, query: Mapping[str, str]) -> Json:
    for each in state["exits"]:
        if each["name"] == name and each["section"] == query.get("section", each["section"]):
            domains = [
                {key: value for key, value in pair.items() if key not in ("section", "exit")}
                for pair in state["domains"]
                if (pair["section"], pair["exit"]) == (each["section"], name)
            ]
            return {**each, "domains": domains}
    raise ApiError(HTTPStatus.NOT_FOUND, f"no exit is called {name!r}")


def _own_history(counters: Counters, what: str, query: Mapping[str, str]) -> Any:
    try:
        return history.own(counters, what, query)
    except ValueError as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, str(error)) from None


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(DEFAULT_SESSIONS))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(HTTPStatus.BAD_REQUEST, "limit: expected a number")
    return min(int(text), MAX_SESSIONS)


def _json(value: object) -> tuple[str, bytes]:
    return "application/json", snapshot.to_json(value)
