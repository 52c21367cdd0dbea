"""The JSON API, as a WSGI application.

    GET  /status                                     doors, workers, and counts
    GET  /exits                                      all exits; ?section= ?state= ?country= ?tag=
    GET  /exits/NAME                                 one of them, with the domains it is out for
    POST /exits/NAME/ban      {seconds, domain?}     leave it alone, or only for a domain
    POST /exits/NAME/unban    {domain?}              use it again
    POST /exits/NAME/drain    /exits/NAME/undrain    ask it nothing more; use it again
    POST /exits/NAME/report   {domain, ok, reason?}  it has served a domain well or badly
    GET  /sessions                                   who has which exit, the latest first; ?most=
    POST /sessions/rotate     {session, user?}       give it another exit
    POST /sessions/report     {session, user?, domain, ok, reason?}
    GET  /metrics                                    for Prometheus

Whoever asks shows the token: ``Authorization: Bearer TOKEN``.  A command may say
``?section=server`` where both sections have exits; else it means local.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote

from gsocks.admin.crew import Crew
from gsocks.admin.panel import Panel, Problem
from gsocks.admin.snapshot import Json, merged

#: bytes of a request's body
LARGEST_BODY = 65536

#: sessions of a section that are listed if nobody asks for more, and at most
MOST_SESSIONS = 1000
MOST_SESSIONS_EVER = 100_000

Environ: TypeAlias = Mapping[str, Any]
StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]


class App:
    """What one process serves, and tells for its crew.

    ``token`` None asks for none: at a worker's own socket, which speaks for nobody else.
    """

    def __init__(self, panel: Panel, crew: Crew, token: str | None) -> None:
        self._panel = panel
        self._crew = crew
        self._token = None if token is None else f"Bearer {token}".encode()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI's entry (PEP 3333)."""
        more: list[tuple[str, str]] = []
        try:
            self._let_in(environ)
            status, (kind, body) = HTTPStatus.OK, self._answer(environ)
        except Problem as problem:
            status, (kind, body) = problem.status, _json({"error": str(problem)})
            if status is HTTPStatus.UNAUTHORIZED:
                more = [("WWW-Authenticate", 'Bearer realm="gsocks"')]
        fields = [("Content-Type", kind), ("Content-Length", str(len(body)))]
        start_response(
            f"{status.value} {status.phrase}", [*fields, ("Cache-Control", "no-store"), *more]
        )
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _let_in(self, environ: Environ) -> None:
        shown = str(environ.get("HTTP_AUTHORIZATION", "")).encode("utf-8", "surrogateescape")
        if self._token is not None and not compare_digest(shown, self._token):
            raise Problem(HTTPStatus.UNAUTHORIZED, "expected Authorization: Bearer TOKEN")

    def _answer(self, environ: Environ) -> tuple[str, bytes]:
        """The type and the body of the answer.  Raises Problem."""
        path = str(environ.get("PATH_INFO", "")).split("/")[1:]
        query = parse_qs(str(environ.get("QUERY_STRING", "")))
        asked = {name: values[-1] for name, values in query.items()}
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._tell(path, asked)
        if environ["REQUEST_METHOD"] == "POST":
            self._obey(environ, path, asked)
            return _json({"done": True})
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "GET asks, POST commands")

    # --- telling ----------------------------------------------------------------------------

    def _tell(self, path: list[str], asked: Mapping[str, str]) -> tuple[str, bytes]:
        match path:
            case ["own", "snapshot"] if self._token is None:
                return _json(self._panel.snapshot())
            case ["own", "sessions"] if self._token is None:
                return _json(self._panel.sessions(_most(asked)))
            case ["status"]:
                known = self._snapshot()
                return _json({name: known[name] for name in ("workers", "doors", "sessions")})
            case ["exits"]:
                return _json(_chosen(self._snapshot()["exits"], asked))
            case ["exits", name]:
                return _json(_one(self._snapshot(), name, asked))
            case ["sessions"]:
                return _json(self._sessions(_most(asked)))
            case ["metrics"]:
                return self._metrics()
        raise Problem(HTTPStatus.NOT_FOUND, "there are /status, /exits, /sessions and /metrics")

    def _snapshot(self) -> Json:
        others = self._crew.ask("GET", "/own/snapshot")
        return merged([self._panel.snapshot(), *(told.said for told in others)])

    def _sessions(self, most: int) -> list[Json]:
        found = self._panel.sessions(most)
        for told in self._crew.ask("GET", f"/own/sessions?most={most}"):
            found += told.said
        # of a session that several know, what the one says that had it last
        found.sort(key=lambda each: each["idle"])
        latest: dict[tuple[str, ...], Json] = {}
        for each in found:
            latest.setdefault((each["section"], each["user"] or "", each["session"]), each)
        return list(latest.values())[:most]

    def _metrics(self) -> tuple[str, bytes]:
        try:
            from gsocks.admin import metrics
        except ImportError:
            raise Problem(
                HTTPStatus.NOT_IMPLEMENTED,
                "metrics need prometheus_client (pip install 'gsocks[metrics]')",
            ) from None
        return metrics.CONTENT_TYPE, metrics.exposition(self._snapshot())

    # --- doing ------------------------------------------------------------------------------

    def _obey(self, environ: Environ, path: list[str], asked: Mapping[str, str]) -> None:
        body = _read_body(environ)
        target = quote(str(environ["PATH_INFO"]), encoding="latin-1")
        if environ.get("QUERY_STRING"):
            target += f"?{environ['QUERY_STRING']}"
        others = [told.status for told in self._crew.ask("POST", target, body)]
        try:
            self._panel.obey(path, asked.get("section"), body)
        except Problem as problem:
            # a session may be known to another worker alone
            if problem.status is not HTTPStatus.NOT_FOUND or HTTPStatus.OK not in others:
                raise


def _read_body(environ: Environ) -> bytes:
    # ends where the body does, whether that comes with its length or in chunks
    body: bytes = environ["wsgi.input"].read(LARGEST_BODY + 1)
    if len(body) > LARGEST_BODY:
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {LARGEST_BODY} bytes")
    return body


def _chosen(exits: list[Json], asked: Mapping[str, str]) -> list[Json]:
    for name, value in asked.items():
        if name not in ("section", "state", "country", "tag"):
            raise Problem(HTTPStatus.BAD_REQUEST, f"no such filter: {name}")
        if name == "tag":
            exits = [each for each in exits if value in each["tags"]]
        else:
            exits = [each for each in exits if each[name] == value]
    return exits


def _one(known: Json, name: str, asked: Mapping[str, str]) -> Json:
    for each in known["exits"]:
        if each["name"] == name and each["section"] == asked.get("section", each["section"]):
            domains = [
                {key: value for key, value in pair.items() if key not in ("section", "exit")}
                for pair in known["domains"]
                if (pair["section"], pair["exit"]) == (each["section"], name)
            ]
            return {**each, "domains": domains}
    raise Problem(HTTPStatus.NOT_FOUND, f"no exit is called {name!r}")


def _most(asked: Mapping[str, str]) -> int:
    text = asked.get("most", str(MOST_SESSIONS))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Problem(HTTPStatus.BAD_REQUEST, "most: expected a number")
    return min(int(text), MOST_SESSIONS_EVER)


def _json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode() + b"\n"
