"""The admin as a WSGI application: who may ask, then the dashboard's files and the API.

A program shows a token with each request: ``Authorization: Bearer TOKEN``.  A browser signs in with
the token by ``POST /sign-in`` and has a session then, in a cookie that no script can read and that
no other site's page can have sent.

What a browser asks has to name this machine in ``Host`` as an address, as localhost or as the
config says: else another site could have its name point here (DNS rebinding).  What changes
something has to come from a page of this origin (``Origin``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent
from msgspec import Struct

from gsocks.address import ip_of
from gsocks.admin.api import Api
from gsocks.admin.guesses import Guesses
from gsocks.admin.health import PATHS, Readiness, respond
from gsocks.admin.pages import FIELDS, PRELOAD, Page, Pages
from gsocks.admin.peers import Peers
from gsocks.admin.problems import PROBLEM, ApiError
from gsocks.admin.routes import JSON, MAX_BODY, Answer, Call, Role, Routes, read_body, read_query
from gsocks.admin.sign_in import LIFETIME, SignedIn
from gsocks.admin.token import Token, Tokens
from gsocks.admin.wsgi import (
    AUTHENTICATED,
    ENDLESS,
    Environ,
    StartResponse,
    raw_target,
    start,
)

log = logging.getLogger("gsocks.admin")

#: browsers sign in and out there
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"

#: bytes of a sign-in
_MAX_SIGN_IN = 2048

_CLOSE = ("Connection", "close")


class _SignIn(Struct, forbid_unknown_fields=True):
    token: str


class _Identity(NamedTuple):
    """Who asks."""

    token: Token
    #: the session of a browser; None: a program has shown its token
    session: str | None


class App:
    """Serves ``api`` to those who have one of ``tokens``.

    ``key``: signs the sessions of browsers; the same in all workers.  ``hosts``: names of this
    machine, besides its addresses and localhost.  ``sleep``: delays the answer to a wrong token.
    """

    def __init__(
        self,
        api: Api,
        tokens: Tokens,
        key: bytes,
        peers: Peers | None = None,
        hosts: Collection[str] = (),
        sleep: Callable[[float], object] = gevent.sleep,
    ) -> None:
        self._routes: Routes = api.routes
        self._api = api
        self._tokens = tokens
        self._peers = Peers() if peers is None else peers
        self._hosts = {each.lower().rstrip(".") for each in hosts}
        self._sleep = sleep
        self._pages = Pages()
        #: whether requests are taken, which is told without a token; None: it is not told here
        self.readiness: Readiness | None = None
        self.guesses = Guesses()
        self.sessions = SignedIn(tokens, key)

    def close(self) -> None:
        """End what goes on without end."""
        self._api.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI's entry (PEP 3333)."""
        target = raw_target(environ)
        path, _, query = target.partition("?")
        method = str(environ["REQUEST_METHOD"])
        try:
            if self.readiness is not None and path in PATHS and method in ("GET", "HEAD"):
                status, body = self.readiness.answer(path)
                return respond(start_response, status, body, with_body=method == "GET")
            page = self._pages.at(path) if method in ("GET", "HEAD") else None
            if page is not None:
                return self._send_page(environ, start_response, page)
            if path in (SIGN_IN, SIGN_OUT):
                return self._send_signed(environ, start_response, path)
            answer = self._answer(environ, method, path, query, target)
        except ApiError as error:
            return _send_problem(start_response, error, method)
        if not isinstance(answer.body, bytes):
            environ[ENDLESS]()
            start(start_response, answer.status, answer.kind, None)
            return answer.body
        start(start_response, answer.status, answer.kind, len(answer.body))
        return [b"" if method == "HEAD" else answer.body]

    def _answer(self, environ: Environ, method: str, path: str, query: str, target: str) -> Answer:
        identity = self._identify(environ)
        environ[AUTHENTICATED]()
        if identity.session is not None and method not in ("GET", "HEAD"):
            _check_origin(environ)
        route, names = self._routes.find(method, path)
        token = identity.token
        if token.role < route.role:
            raise ApiError(
                HTTPStatus.FORBIDDEN, f"the role {token.role} may not do that, {route.role} may"
            )
        read = read_query(query, route.query)
        raw = _read_body(environ, MAX_BODY)
        call = Call(
            names,
            read,
            read_body(raw, route.body),
            target,
            raw,
            token.name,
            token.role,
            lambda: identity.session is None or self.sessions.check(identity.session) is not None,
            str(environ.get("HTTP_ACCEPT", "")),
        )
        if route.role is Role.OPERATOR:
            log.info("%s: %s %s", token.name, method, path)
        return route.handler(call)

    # --- who asks ---------------------------------------------------------------------------

    def _identify(self, environ: Environ) -> _Identity:
        """Raises ApiError."""
        given = str(environ.get("HTTP_AUTHORIZATION", ""))
        if given:
            scheme, _, text = given.partition(" ")
            token = self._tokens.find(text) if scheme.lower() == "bearer" else None
            if token is None:
                raise self._wrong(environ)
            return _Identity(token, None)
        session = _cookie(environ)
        if session is not None:
            self._check_host(environ)
            _check_site(environ)
            token = self.sessions.check(session)
            if token is not None:
                return _Identity(token, session)
        raise _unauthorized("expected Authorization: Bearer TOKEN")

    def _wrong(self, environ: Environ) -> ApiError:
        verdict = self.guesses.failed(str(environ.get("REMOTE_ADDR") or "a Unix socket"))
        self._sleep(verdict.delay)
        if verdict.retry_after is not None:
            return ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong tokens from that address",
                fields=[("Retry-After", str(verdict.retry_after)), _CLOSE],
            )
        return _unauthorized("that is not the token")

    def _check_host(self, environ: Environ) -> None:
        """Raises ApiError unless the host is this machine, whatever a name server says of it."""
        text = str(environ.get("HTTP_HOST", ""))
        host = _host_of(text)
        is_ours = ip_of(host) is not None or host == "localhost" or host.endswith(".localhost")
        if not is_ours and host not in self._hosts:
            raise ApiError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "the dashboard is not served under that name (admin.hosts allows it)",
                fields=[_CLOSE],
            )

    # --- browsers ---------------------------------------------------------------------------

    def _send_page(
        self, environ: Environ, start_response: StartResponse, page: Page
    ) -> Iterable[bytes]:
        self._check_host(environ)
        fields = [*FIELDS]
        session = _cookie(environ)
        if session is not None and self.sessions.check(session) is not None:
            environ[AUTHENTICATED]()
            if page.is_document:
                fields.append(PRELOAD)
        else:
            fields.append(_CLOSE)  # a stranger has one request
        fields.append(("ETag", page.tag))
        if environ.get("HTTP_IF_NONE_MATCH") == page.tag:
            start_response("304 Not Modified", fields)
            return []
        start(start_response, HTTPStatus.OK, page.kind, len(page.body), fields)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else page.body]

    def _send_signed(
        self, environ: Environ, start_response: StartResponse, path: str
    ) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            raise ApiError(
                HTTPStatus.METHOD_NOT_ALLOWED, "expected POST", fields=[("Allow", "POST"), _CLOSE]
            )
        self._check_host(environ)
        _check_origin(environ)
        value, age = "", 0
        if path == SIGN_IN:
            value, age = self._sign_in(environ), LIFETIME
        elif (session := _cookie(environ)) is not None:
            nonce = self.sessions.revoke(session)
            if nonce is not None:
                environ[AUTHENTICATED]()
                self._peers.ask("POST", "/own/revoked", nonce.encode())
        secure = "; Secure" if _is_encrypted(environ) else ""
        cookie = (
            f"{_cookie_name(environ)}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict"
        )
        body = b'{"done": true}\n'
        fields = [("Set-Cookie", cookie + secure), *([] if value else [_CLOSE])]
        start(start_response, HTTPStatus.OK, JSON, len(body), fields)
        return [body]

    def _sign_in(self, environ: Environ) -> str:
        """The value of a new session's cookie.  Raises ApiError."""
        given = read_body(_read_body(environ, _MAX_SIGN_IN), _SignIn)
        token = self._tokens.find(given.token.strip())
        if token is None:
            raise self._wrong(environ)
        environ[AUTHENTICATED]()
        self.guesses.succeeded(str(environ.get("REMOTE_ADDR") or "a Unix socket"))
        log.info("%s has signed in to the dashboard", token.name)
        return self.sessions.begin(token)


def _send_problem(start_response: StartResponse, error: ApiError, method: str) -> Iterable[bytes]:
    body = error.as_json()
    start(start_response, error.status, PROBLEM, len(body), error.fields)
    return [b"" if method == "HEAD" else body]


def _unauthorized(message: str) -> ApiError:
    return ApiError(
        HTTPStatus.UNAUTHORIZED,
        message,
        fields=[("WWW-Authenticate", 'Bearer realm="gsocks"'), _CLOSE],
    )


def _read_body(environ: Environ, most: int) -> bytes:
    # read() stops at the end of the body, whether that has a Content-Length or is chunked
    body: bytes = environ["wsgi.input"].read(most + 1)
    if len(body) > most:
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes")
    return body


def _check_origin(environ: Environ) -> None:
    """Raises ApiError unless a page of this origin sends the request, as browsers say."""
    _check_site(environ)
    origin = str(environ.get("HTTP_ORIGIN", ""))
    host = str(environ.get("HTTP_HOST", "")).lower()
    parts = urlsplit(origin) if len(origin) < 300 else urlsplit("")
    if parts.scheme not in ("http", "https") or parts.netloc.lower() != host:
        raise _foreign()


def _check_site(environ: Environ) -> None:
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        raise _foreign()


def _foreign() -> ApiError:
    return ApiError(
        HTTPStatus.FORBIDDEN, "the request comes from another site's page", fields=[_CLOSE]
    )


def _host_of(text: str) -> str:
    """The host of a Host field, in lower case, without its port and an IPv6 address' brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return text.partition(":")[0].lower().rstrip(".")


def _cookie_name(environ: Environ) -> str:
    """One for each port: cookies are the same for all ports of a host."""
    port = str(environ.get("HTTP_HOST", "")).rpartition(":")[2]
    return f"gsocks-{port}" if port.isdigit() else "gsocks"


def _cookie(environ: Environ) -> str | None:
    """The value of the session's cookie; None if there is none."""
    text = str(environ.get("HTTP_COOKIE", ""))
    if not text:
        return None
    try:
        found = SimpleCookie(text).get(_cookie_name(environ))
    except CookieError:
        return None
    return None if found is None or not found.value else found.value


def _is_encrypted(environ: Environ) -> bool:
    """Whether the browser has a TLS proxy in front, which says so."""
    forwarded = str(environ.get("HTTP_X_FORWARDED_PROTO", ""))
    return "https" in (environ.get("wsgi.url_scheme"), forwarded.strip().lower())
