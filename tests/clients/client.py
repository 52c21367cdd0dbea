"""A client program: how it is told of a proxy, and what has to work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Places:
    """What lines of bash are told, by name in braces; see :meth:`words`."""

    #: a folder of its own, in which the line runs
    work: Path
    #: the listener without users, and the one with them
    port: int
    guarded: int
    #: the web server, and the same over TLS
    web: int
    tls: int
    #: who has to be trusted for it, as a file of PEM
    ca: Path
    #: what ``make clients`` has built
    built: Path
    name: str
    password: str

    def words(self, **more: object) -> dict[str, str]:
        words: dict[str, object] = {
            "work": self.work,
            "port": self.port,
            "open": f"127.0.0.1:{self.port}",
            "guarded": self.guarded,
            "login": f"{self.name}:{self.password}@127.0.0.1:{self.guarded}",
            "name": self.name,
            "password": self.password,
            "web": self.web,
            "page": f"http://localhost:{self.web}/found.txt",
            "tls": self.tls,
            "secure": f"https://localhost:{self.tls}/found.txt",
            "ca": self.ca,
            "built": self.built,
            **more,
        }
        return {key: str(value) for key, value in words.items()}


#: runs for as long as a client is tried; yields more words for its lines, the port that it
#: is to reach among them as ``server`` if that is not the web server
Server: TypeAlias = Callable[[Places], Iterator[Mapping[str, object]]]


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    #: where it comes from: ``Debian: NAMES``, ``PyPI: NAMES``, ``built: NAMES of make clients``
    source: str
    #: a line of bash; the first number with a dot in what it prints is the version
    version: str
    #: what has to work, as the table says it -> a line of bash; what has ``password`` in it goes to
    #: the listener with users
    lines: Mapping[str, str]
    #: what its user has to know
    hint: str = ""
    #: files to be made in the folder before a line runs, by name; with words as in lines
    files: Mapping[str, str] = field(default_factory=dict)
    server: Server | None = None
    #: what the line has to print
    prints: str = "found"


#: in the order of the table
CLIENTS: dict[str, Client] = {}


def client(
    name: str,
    source: str,
    version: str,
    lines: Mapping[str, str],
    hint: str = "",
    *,
    files: Mapping[str, str] | None = None,
    server: Server | None = None,
    prints: str = "found",
) -> None:
    """Add a row."""
    assert name not in CLIENTS, name
    CLIENTS[name] = Client(name, source, version, lines, hint, files or {}, server, prints)


@contextmanager
def serving(server: Server | None, places: Places) -> Iterator[Mapping[str, object]]:
    """The words of a client's own server, while it runs."""
    if server is None:
        yield {}
    else:
        with contextmanager(server)(places) as words:
            yield words
