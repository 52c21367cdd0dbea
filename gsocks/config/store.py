"""Where the store is that gateways share: the URL of a Valkey or Redis.

redis://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE]     rediss:// with TLS
unix://PATH[?db=DATABASE]                            a Unix socket
redis+sentinel://HOST[:PORT],.../SERVICE[/DATABASE]  the master that Sentinels name
redis+cluster://HOST[:PORT],...                      a cluster; some of its nodes
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote, unquote

from gsocks.address import Address
from gsocks.errors import BadAddress
from gsocks.messages import Mistake, shown

#: ports of a server and of a Sentinel
_PORT, _SENTINEL_PORT = 6379, 26379

#: nodes of a cluster, or Sentinels, that may be named
MAX_HOSTS = 32

_URL = re.compile(r"(rediss?|unix|rediss?\+sentinel|rediss?\+cluster)://([\x21-\x7e]{1,2000})")
_FORMS = (
    "redis://HOST:PORT/0, rediss://..., unix:///PATH, redis+sentinel://HOST:PORT,.../SERVICE or"
    " redis+cluster://HOST:PORT,..."
)
_DATABASE = re.compile(r"[0-9]{1,4}")
_SERVICE = re.compile(r"[\w.-]{1,64}", re.ASCII)


class StoreUrl:
    """A parsed URL; its text and its repr have no password."""

    # no dataclass, which msgspec would read as a mapping
    __slots__ = (
        "database",
        "hosts",
        "kind",
        "password",
        "path",
        "service",
        "tls",
        "user",
    )

    def __init__(
        self,
        kind: Literal["server", "sentinel", "cluster", "unix"],
        hosts: tuple[Address, ...] = (),
        *,
        path: str = "",
        service: str = "",
        database: int = 0,
        tls: bool = False,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self.kind = kind
        #: the server, or the Sentinels, or some nodes of the cluster
        self.hosts = hosts
        #: of a Unix socket
        self.path = path
        #: the master's name at the Sentinels
        self.service = service
        self.database = database
        self.tls = tls
        #: of an ACL; None: the default user
        self.user = user
        self.password = password

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoreUrl):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"<StoreUrl {self}>"

    def __str__(self) -> str:
        secure = "s" if self.tls else ""
        login = (
            ""
            if self.user is None and self.password is None
            else f"{quote(self.user or '', safe='')}:***@"
        )
        database = f"/{self.database}" if self.database else ""
        if self.kind == "unix":
            return f"unix://{login}{quote(self.path)}" + (
                f"?db={self.database}" * bool(self.database)
            )
        form = "" if self.kind == "server" else f"+{self.kind}"
        service = f"/{self.service}" if self.service else ""
        return f"redis{secure}{form}://{login}{','.join(map(str, self.hosts))}{service}{database}"

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """The URL in ``text``.  Raises Mistake, which repeats no password."""
        match = _URL.fullmatch(text)
        if match is None:
            raise Mistake(f"{_hidden(text)} is not the URL of a store (expected {_FORMS})")
        scheme, rest = match[1], match[2]
        login, at, rest = rest.rpartition("@")
        user, password = _login(login) if at else (None, None)
        if scheme == "unix":
            path, _, query = rest.partition("?")
            if not path.startswith("/") or (query and not query.startswith("db=")):
                raise Mistake("not a Unix socket (expected unix:///run/valkey.sock?db=0)")
            database = _database(query.removeprefix("db="))
            return cls("unix", path=unquote(path), database=database, user=user, password=password)
        kind = scheme.partition("+")[2]
        tls = scheme.startswith("rediss")
        listed, _, path = rest.partition("/")
        if kind == "sentinel":
            service, _, database_text = path.partition("/")
            if not _SERVICE.fullmatch(service):
                raise Mistake("expected the master's name behind the Sentinels (.../SERVICE)")
            return cls(
                "sentinel",
                _hosts(listed, _SENTINEL_PORT),
                service=service,
                database=_database(database_text),
                tls=tls,
                user=user,
                password=password,
            )
        if kind == "cluster":
            if path not in ("", "0"):
                raise Mistake("a cluster has database 0 only")
            hosts = _hosts(listed, _PORT)
            return cls("cluster", hosts, tls=tls, user=user, password=password)
        hosts = _hosts(listed, _PORT)
        if len(hosts) > 1:
            raise Mistake("one server only (several are redis+sentinel:// or redis+cluster://)")
        database = _database(path)
        return cls("server", hosts, database=database, tls=tls, user=user, password=password)


def _hidden(text: str) -> str:
    """``text`` for a message: what stands before an ``@`` may be a password."""
    scheme, separator, rest = text.partition("://")
    if not separator:  # it may be a password alone
        return "the text" if "@" in text else shown(text)
    return shown(f"{scheme}://***@{rest.rpartition('@')[2]}" if "@" in rest else text)


def _login(text: str) -> tuple[str | None, str | None]:
    user, separator, password = text.partition(":")
    return unquote(user) or None, unquote(password) if separator else None


def _database(text: str) -> int:
    if not text:
        return 0
    if not _DATABASE.fullmatch(text):
        raise Mistake(f"{shown(text)} is not the number of a database")
    return int(text)


def _hosts(text: str, port: int) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    for each in text.split(","):
        has_port = re.search(r":[0-9]+\Z", each) is not None and not each.endswith("]")
        try:
            found[Address.parse(each if has_port else f"{each}:{port}")] = None
        except BadAddress as error:
            raise Mistake(str(error)) from None
    if len(found) > MAX_HOSTS:
        raise Mistake(f"more than {MAX_HOSTS} hosts")
    return tuple(found)
