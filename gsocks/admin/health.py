"""Whether this process is alive and takes requests: for balancers and Kubernetes, without a token.

GET /healthz    200: it is alive
GET /readyz     200: it takes requests; 503: it does not, and why
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path

from gsocks.http.status import reason_phrase
from gsocks.rotation.group import ExitGroup

#: what is asked without a token
PATHS = frozenset({"/healthz", "/readyz"})


class Readiness:
    """Whether requests are taken.

    ``groups``: the exits, of which each section needs one that may be used; ``key_files``: returns
    the files without which no tunnel opens.
    """

    def __init__(
        self, groups: Mapping[str, ExitGroup], key_files: Callable[[], Iterable[Path]]
    ) -> None:
        self._groups = groups
        self._key_files = key_files
        self.is_shutting_down = False

    def why_not(self) -> str:
        """Why no requests are taken; empty: they are."""
        if self.is_shutting_down:
            return "shutting down"
        now = time.monotonic()
        for name, group in self._groups.items():
            if not group.roster.has_usable(now):
                return f"{name}: no exit can be used now"
        for path in self._key_files():
            if not os.access(path, os.R_OK):
                return f"{path}: can't be read"
        return ""

    def answer(self, path: str) -> tuple[HTTPStatus, bytes]:
        """Status and body for one of :data:`PATHS`."""
        why = self.why_not() if path == "/readyz" else ""
        status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
        return status, f"{why or 'ok'}\n".encode()


class HealthApp:
    """A WSGI application that has nothing else."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def __call__(
        self,
        environ: Mapping[str, object],
        start_response: Callable[[str, list[tuple[str, str]]], object],
    ) -> Iterable[bytes]:
        """WSGI's entry (PEP 3333)."""
        method, path = environ["REQUEST_METHOD"], str(environ.get("PATH_INFO", ""))
        if method not in ("GET", "HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"expected GET\n"
        elif path not in PATHS:
            status, body = HTTPStatus.NOT_FOUND, b"known: /healthz, /readyz\n"
        else:
            status, body = self._readiness.answer(path)
        return respond(start_response, status, body, with_body=method != "HEAD")


def respond(
    start_response: Callable[[str, list[tuple[str, str]]], object],
    status: HTTPStatus,
    body: bytes,
    *,
    with_body: bool,
) -> Iterable[bytes]:
    """Send a short text."""
    start_response(
        f"{status.value} {reason_phrase(status)}",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ],
    )
    return [body if with_body else b""]
