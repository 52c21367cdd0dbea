"""A client of the admin API (docs/admin.md), for programs and for ``gsocks ctl``.

It blocks the calling greenlet only, and works without gevent's patches.
"""

from __future__ import annotations

import json
import socket as std_socket
from collections.abc import Generator, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import gevent
from gevent import socket, ssl

#: a JSON object
Json: TypeAlias = dict[str, Any]

_FORMS = "expected http://HOST:PORT, https://HOST or unix:PATH"

#: seconds for a connection and each read
TIMEOUT = 30.0


class AdminError(Exception):
    """The admin can't be reached, or has not served a request.

    ``status``: of its answer, 0 if there was none; ``problem``: the answer (RFC 9457).
    """

    def __init__(self, message: str, status: int = 0, problem: Mapping[str, Any] = {}) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


class AdminClient:
    """The admin at ``url``: ``http://HOST:PORT``, ``https://...`` or ``unix:PATH``.

    Every method raises AdminError.  ``timeout``: seconds.
    """

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._token = token
        self._timeout = timeout
        self._connection: HTTPConnection | None = None

    def __repr__(self) -> str:
        return f"<AdminClient {self._url}>"

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connection; a later request opens one again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        """The JSON of an answer.  Parameters that are None are left out."""
        response = self._send(method, path, query, body)
        try:
            with gevent.Timeout(self._timeout, TimeoutError("timed out")):
                raw = response.read()
        except (OSError, HTTPException) as error:
            self.close()
            raise AdminError(f"{self._url}: {_words(error)}") from None
        return _read(raw, response.status)

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """The items of all pages of a list."""
        cursor: str | None = ""
        while cursor is not None:
            page = self.request("GET", path, {**query, "cursor": cursor or None})
            yield from page["items"]
            cursor = page["next"]

    # --- what there is ----------------------------------------------------------------------

    def status(self) -> Json:
        """Listeners, workers, counts."""
        return dict(self.request("GET", "/v1/status"))

    def fleet(self) -> Json:
        """The gateways that share a store; AdminError with the status 404 if it is alone."""
        return dict(self.request("GET", "/v1/fleet"))

    def exits(self, **query: Any) -> Iterator[Json]:
        """The exits; ``query`` as the API has it: ``state="ejected"``."""
        return self.pages("/v1/exits", limit=1000, **query)

    def exit(self, name: str, section: str | None = None) -> Json:
        """One exit."""
        return dict(self.request("GET", _exit(name), {"section": section}))

    def sessions(self, **query: Any) -> Iterator[Json]:
        """The sessions, those of the latest use first."""
        return self.pages("/v1/sessions", limit=1000, **query)

    def users(self, **query: Any) -> Iterator[Json]:
        """The users."""
        return self.pages("/v1/users", limit=1000, **query)

    def requests(self, **query: Any) -> Iterator[Json]:
        """The request log, the latest first."""
        return self.pages("/v1/requests", limit=1000, **query)

    def changes(self, **query: Any) -> list[Json]:
        """What has changed lately, the latest first."""
        return list(self.request("GET", "/v1/changes", query)["items"])

    def events(self, **query: Any) -> Generator[tuple[str, Any], None, None]:
        """Kind and data of each event, until the stream ends (an hour) or the caller goes on."""
        response = self._send("GET", "/v1/events", query, None)
        if response.status != 200:
            _read(response.read(), response.status)
        kind = ""
        try:
            for line in response:
                name, _, text = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = text
                elif name == "data":
                    yield kind, json.loads(text)
        except (OSError, HTTPException, ValueError) as error:
            raise AdminError(f"{self._url}: {_words(error)}") from None
        finally:
            self.close()

    # --- commands ---------------------------------------------------------------------------

    def ban(
        self, name: str, seconds: float, domain: str | None = None, section: str | None = None
    ) -> None:
        """Don't use an exit for so long, or not for a domain."""
        self._command(name, "ban", section, seconds=seconds, domain=domain)

    def unban(self, name: str, domain: str | None = None, section: str | None = None) -> None:
        """Use an exit again."""
        self._command(name, "unban", section, domain=domain)

    def drain(self, name: str, section: str | None = None) -> None:
        """Send an exit no new requests."""
        self._command(name, "drain", section)

    def undrain(self, name: str, section: str | None = None) -> None:
        """Send an exit requests again."""
        self._command(name, "undrain", section)

    def report(self, name: str, domain: str, *, ok: bool, reason: str | None = None) -> None:
        """Report whether an exit serves a domain."""
        self._command(name, "report", None, domain=domain, ok=ok, reason=reason)

    def check(self, name: str, section: str | None = None) -> Json:
        """Check an exit now."""
        return dict(self.request("POST", _exit(name) + "/check", {"section": section}))

    def put_exit(self, name: str, section: str | None = None, **terms: Any) -> None:
        """Add an exit, or replace the one of that name: ``url="socks5://..."``."""
        self.request("PUT", _exit(name), {"section": section}, terms)

    def delete_exit(self, name: str, section: str | None = None) -> None:
        """Remove an exit."""
        self.request("DELETE", _exit(name), {"section": section})

    def reset_exit(self, name: str, section: str | None = None) -> None:
        """Have an exit as the config and the lists say again."""
        self._command(name, "reset", section)

    def put_user(self, name: str, password: str) -> None:
        """Add a user, or change the password."""
        self.request("PUT", f"/v1/users/{quote(name, safe='')}", None, {"password": password})

    def delete_user(self, name: str) -> None:
        """Remove a user."""
        self.request("DELETE", f"/v1/users/{quote(name, safe='')}")

    def quotas(self) -> Json:
        """What one user may use at a time, by section."""
        return dict(self.request("GET", "/v1/quotas")["sections"])

    def put_quota(self, section: str, **quota: int | None) -> None:
        """Change it: ``per_user=4``; what is left out has no limit then."""
        self.request("PUT", f"/v1/quotas/{quote(section, safe='')}", None, quota)

    def rotate(self, session: str, user: str | None = None) -> bool:
        """Move a session to another exit at its next request.

        False: this gateway knows no such session.  Those that share its store were told, since one
        of them may.
        """
        body = _given(session=session, user=user)
        return bool(self.request("POST", "/v1/sessions/rotate", None, body)["known"])

    def reload(self) -> None:
        """Have the config read again."""
        self.request("POST", "/v1/reload", None, {})

    def _command(self, name: str, word: str, section: str | None, **body: Any) -> None:
        self.request("POST", f"{_exit(name)}/{word}", {"section": section}, _given(**body))

    # --- HTTP -------------------------------------------------------------------------------

    def _send(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any
    ) -> HTTPResponse:
        target = path
        if given := _given(**(query or {})):
            target += f"?{urlencode(given)}"
        raw = None if body is None else json.dumps(body).encode()
        fields = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        for is_last in (False, True):
            is_new = self._connection is None
            connection = self._connection = self._connection or _Connection(self._url)
            try:
                with gevent.Timeout(self._timeout, TimeoutError("timed out")):
                    connection.request(method, target, raw, fields)
                    return connection.getresponse()
            except (OSError, HTTPException) as error:
                self.close()
                # one that was kept may have been closed meanwhile
                if is_last or is_new or method != "GET":
                    raise AdminError(f"{self._url}: {_words(error)}") from None
        raise AdminError(f"{self._url}: not reached")


def _words(error: Exception) -> str:
    """What went wrong, and what that mostly means."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        return f"{words} (nothing listens there: is gsocks running?)"
    return words


def check_url(url: str) -> None:
    """Raises AdminError if ``url`` is not that of an admin."""
    _parts(url)


def _parts(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; of a Unix socket as in HTTP.  Raises AdminError."""
    try:
        parts = urlsplit("http://localhost" if url.startswith("unix:/") else url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise AdminError(_FORMS) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AdminError(_FORMS)
    return parts.scheme, parts.hostname, port


class _Connection(HTTPConnection):
    """A connection by gevent's sockets.  Raises AdminError for a URL that is none."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else None
        scheme, host, port = _parts(url)
        self._is_encrypted = scheme == "https"
        super().__init__(host, port)

    def connect(self) -> None:
        if self._path is not None:
            sock = socket.socket(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
            self.sock = sock
            sock.connect(self._path)
            return
        sock = socket.create_connection((self.host, self.port))
        if self._is_encrypted:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            sock = context.wrap_socket(sock, server_hostname=self.host)
        self.sock = sock


def _read(raw: bytes, status: int) -> Any:
    try:
        told = json.loads(raw)
    except ValueError:
        raise AdminError(f"the answer is no JSON (status {status})", status) from None
    if status >= 400:
        where = f"{told['parameter']}: " if told.get("parameter") else ""
        raise AdminError(where + str(told.get("detail", f"status {status}")), status, told)
    return told


def _exit(name: str) -> str:
    return f"/v1/exits/{quote(name, safe='')}"


def _given(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
