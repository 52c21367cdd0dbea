"""What the WSGI applications of the admin have in common (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import quote

from gsocks.http.status import reason_phrase

#: in the WSGI environment: to be called when a request has shown who sends it
AUTHENTICATED = "gsocks.authenticated"

#: in the WSGI environment: to be called when a response goes on without end
ENDLESS = "gsocks.endless"

#: in the WSGI environment: path and query as they were sent
TARGET = "gsocks.target"

Environ: TypeAlias = Mapping[str, Any]
StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]


def raw_target(environ: Environ) -> str:
    """Path and query as they were sent, so that a name may have a slash."""
    if TARGET in environ:
        return str(environ[TARGET])
    path = quote(str(environ.get("PATH_INFO", "")), encoding="latin-1")
    query = str(environ.get("QUERY_STRING", ""))
    return f"{path}?{query}" if query else path


def start(
    start_response: StartResponse,
    status: HTTPStatus,
    kind: str,
    length: int | None,
    more: Iterable[tuple[str, str]] = (),
) -> None:
    """Begin a response; ``length`` None: it has no end yet."""
    fields = [("Content-Type", kind), ("X-Content-Type-Options", "nosniff"), *more]
    if length is not None:
        fields.append(("Content-Length", str(length)))
    if not any(name == "Cache-Control" for name, _ in fields):
        fields.append(("Cache-Control", "no-store"))
    start_response(f"{status.value} {reason_phrase(status)}", fields)
