"""What a listener itself answers to a browser that takes it for a web server.

    GET /proxy.pac HTTP/1.1        the script by which it finds the proxy; /wpad.dat is the same
    GET / HTTP/1.1                 a page that tells what this is, and how it is set up

Neither needs a login, which a browser gives to a proxy only: both tell what the browser knows
already, and what the config's ``pac`` has.
"""

from __future__ import annotations

import re
from html import escape
from http import HTTPStatus
from typing import NamedTuple

import h11

from gsocks.address import Address
from gsocks.errors import BadRequest, ClientError, ConfigError
from gsocks.http.head import host_of
from gsocks.http.message import header
from gsocks.http.pac import PAC_TYPE, PacScript
from gsocks.http.status import error_type, reason_phrase
from gsocks.settings import PacSettings
from gsocks.sock import AnySocket

#: where browsers look for the script (draft-ietf-wrec-wpad-01 section 4.4.1 for the second)
SCRIPTS = frozenset({b"/proxy.pac", b"/wpad.dat"})

#: what may stand in a script and in a page: no name of the DNS has more
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")

_ERROR = ("Proxy-Status", f"gsocks; error={error_type(BadRequest())}")

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>A proxy</title>
<style>body{{font:16px/1.5 sans-serif;max-width:42em;margin:3em auto;padding:0 1em}}
code{{background:#8882;padding:.1em .3em}}</style>
</head>
<body>
<h1>This is a proxy, not a web server</h1>
<p>gsocks listens here for programs that are told to reach web sites through it.</p>
<ul>
<li>Browsers and systems: enter <code>{host}</code>, port <code>{port}</code>, as the {kind} proxy\
 for all protocols{pac}.</li>
<li>Chromium: <code>--proxy-server={url}</code></li>
<li>curl: <code>curl --proxy {url} https://example.com/</code></li>
<li>Many other programs: <code>export https_proxy={url} http_proxy={url}</code></li>
</ul>
</body>
</html>
"""
_OF_SCRIPT = ", or the automatic configuration <code>{url}/proxy.pac</code>"


class OwnAnswer(NamedTuple):
    """An answer of the listener's own, and how the access log tells of it."""

    response: h11.Response
    body: bytes
    outcome: str
    detail: str


class OwnPages:
    """The answers of one listener.

    ``secure``: whether its clients come by TLS.  Raises ConfigError.
    """

    __slots__ = ("_script", "_secure")

    def __init__(self, settings: PacSettings, *, secure: bool = False) -> None:
        self._secure = secure
        try:
            self._script = PacScript(settings.direct) if settings.serve else None
        except ValueError as error:
            raise ConfigError(f"pac: {error}") from None

    def answer(self, request: h11.Request, sock: AnySocket) -> OwnAnswer | None:
        """The answer to a request that names no destination; None if it gets none of these.

        ``sock``: the client's connection, over which it has reached this machine.
        """
        if request.method not in (b"GET", b"HEAD") or not request.target.startswith(b"/"):
            return None
        if header(request, b"transfer-encoding") or header(request, b"content-length"):
            return None  # no browser sends a body with it
        path = request.target.partition(b"?")[0]
        address = self._address(request, sock)
        if path in SCRIPTS and self._script is not None and address is not None:
            script = self._script.naming(str(address), secure=self._secure)
            # one that asks by another name gets another script
            fields = [("Content-Type", PAC_TYPE), ("Cache-Control", "no-cache")]
            name = path.decode("ascii")
            return _answer(HTTPStatus.OK, fields, script, "ok", f"was sent {name}")
        if path == b"/favicon.ico":
            return _answer(HTTPStatus.NOT_FOUND, [_ERROR], "", BadRequest.word, "asks for an icon")
        if address is None or b"text/html" not in (header(request, b"accept") or b"").lower():
            return None
        fields = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
            ("X-Content-Type-Options", "nosniff"),
            _ERROR,
        ]
        reason = "opened like a web site, and shown how a proxy is set up"
        return _answer(HTTPStatus.BAD_REQUEST, fields, self._page(address), BadRequest.word, reason)

    def _address(self, request: h11.Request, sock: AnySocket) -> Address | None:
        """By which name the client reaches this listener, as far as that can be told."""
        field = header(request, b"host")
        if field:
            try:
                address = host_of(field, 443 if self._secure else 80)
            except ClientError:
                pass
            else:
                if _HOST.fullmatch(address.host):
                    return address
        return _own_address(sock)

    def _page(self, address: Address) -> str:
        kind = "HTTPS" if self._secure else "HTTP"
        url = f"{kind.lower()}://{address}"
        pac = "" if self._script is None else _OF_SCRIPT.format(url=escape(url))
        return _PAGE.format(
            host=escape(address.host), port=address.port, kind=kind, url=escape(url), pac=pac
        )


def _answer(
    status: HTTPStatus, fields: list[tuple[str, str]], text: str, outcome: str, detail: str
) -> OwnAnswer:
    body = text.encode("utf-8")
    fields = [*fields, ("Content-Length", str(len(body))), ("Connection", "close")]
    response = h11.Response(status_code=status, headers=fields, reason=reason_phrase(status))
    return OwnAnswer(response, body, outcome, detail)


def _own_address(sock: AnySocket) -> Address | None:
    """Where a client has connected to; None at a Unix socket, or if it is gone."""
    try:
        name = sock.getsockname()
    except OSError:
        return None
    return Address.from_sockaddr(name) if isinstance(name, tuple) else None
