"""The dashboard's files: what a browser loads before one has signed in."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

#: what a page may load and do: what is served here, and nothing inline or from elsewhere
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

#: of each file
FIELDS = [
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    # it is asked again whether it has changed
    ("Cache-Control", "no-cache"),
]

#: of the page itself for who has signed in: what its script asks for first, while that is loading
PRELOAD = (
    "Link",
    ", ".join(f"<{each}>; rel=preload; as=fetch; crossorigin" for each in ("/v1/me", "/v1/status")),
)

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Page(NamedTuple):
    """A file."""

    body: bytes
    kind: str
    #: differs when the file does
    tag: str

    @property
    def is_document(self) -> bool:
        """Whether it is what a browser shows, and not what that loads."""
        return self.kind == _KINDS[".html"]


class Pages:
    """All files, read when one is asked for first."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] | None = None

    def at(self, path: str) -> Page | None:
        """The file at that path; None if there is none."""
        if self._pages is None:
            self._pages = {}
            for each in files("gsocks.admin").joinpath("web").iterdir():
                _, dot, ending = each.name.rpartition(".")
                if (kind := _KINDS.get(dot + ending)) is not None:
                    place = "/" if each.name == "index.html" else f"/web/{each.name}"
                    body = each.read_bytes()
                    digest = urlsafe_b64encode(sha256(body).digest()[:12]).decode()
                    self._pages[place] = Page(body, kind, f'"{digest}"')
        return self._pages.get(path)
