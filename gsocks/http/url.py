"""URLs of web pages."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from gsocks.address import Address
from gsocks.errors import BadAddress

_PORTS = {"http": 80, "https": 443}

#: characters of a URL
_MAX_URL = 8192


@dataclass(frozen=True, slots=True)
class WebUrl:
    """An http:// or https:// URL.  Make one with :meth:`parse`.

    Its str and its repr contain only the server: providers put keys into user names, paths and
    queries.
    """

    scheme: str
    address: Address
    #: the request target: path and query
    target: str = field(repr=False)
    #: credentials for the server, ``user:password``
    login: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> WebUrl:
        """Raises ValueError, whose message contains nothing of ``text``."""
        try:
            return cls._parse(text)
        except BadAddress:
            raise ValueError("its host is neither a name nor an IP address") from None

    @classmethod
    def _parse(cls, text: str) -> WebUrl:
        if len(text) > _MAX_URL or not text.isprintable() or " " in text:
            raise ValueError(f"it has spaces in it, or more than {_MAX_URL} characters")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:  # the library's message contains parts of the URL
            raise ValueError("its host or port is invalid") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("expected e.g. https://example.com/list")
        login, at, _ = parts.netloc.rpartition("@")
        if not (parts.path + parts.query).isascii():
            raise ValueError("it has characters that need percent encoding")
        return cls(
            parts.scheme,
            Address.of(parts.hostname, port or _PORTS[parts.scheme]),
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            unquote_to_bytes(login) if at else None,
        )

    def joined(self, location: str) -> WebUrl:
        """The URL of ``location``, which may be relative to this one.  Raises ValueError."""
        return self.parse(urljoin(f"{self.origin}{self.target}", location))

    @property
    def secure(self) -> bool:
        """Whether it is requested over TLS."""
        return self.scheme == "https"

    @property
    def origin(self) -> str:
        """The server, in the form of RFC 6454."""
        return f"{self.scheme}://{self.host}"

    @property
    def host(self) -> str:
        """The value of Host in a request for it (RFC 9110 section 7.2)."""
        if self.address.port != _PORTS[self.scheme]:
            return str(self.address)
        return f"[{self.address.host}]" if ":" in self.address.host else self.address.host

    @property
    def authorization(self) -> str | None:
        """The credentials as a value of Authorization (RFC 7617 section 2); None without them."""
        if self.login is None:
            return None
        login = self.login if b":" in self.login else self.login + b":"
        return f"Basic {b64encode(login).decode()}"

    def __str__(self) -> str:
        return f"{self.origin}/..."
