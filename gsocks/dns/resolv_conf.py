"""resolv.conf(5): the system's name servers and its search domains."""

from __future__ import annotations

import socket as std_socket
from pathlib import Path
from typing import NamedTuple

from gsocks.dns.name_server import NameServer
from gsocks.dns.system_file import SystemFile

#: bytes of the file that are read
MAX_FILE = 64 * 1024
#: as glibc's MAXNS, and its bound on search domains before 2.26
MAX_SERVERS = 3
MAX_SEARCH = 6


class ResolvConf(NamedTuple):
    """What the file says, as far as gsocks follows it.

    ``options`` are not: their times are those of ``dns`` in the config, and ``ndots`` would look
    up dotted names below the search domains.
    """

    servers: tuple[NameServer, ...]
    search: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, hostname: str) -> ResolvConf:
        """What ``text`` says on the machine ``hostname``; a line that is not understood is left
        out, as by the C library.
        """
        servers: list[NameServer] = []
        search: list[str] | None = None
        for line in text.splitlines():
            words = line.split()
            if len(words) < 2 or line[0] in "#; \t":
                continue
            if words[0] == "nameserver":
                try:
                    servers.append(NameServer.parse(words[1]))
                except ValueError:
                    continue
            elif words[0] == "search":  # the last line of either counts
                search = words[1:]
            elif words[0] == "domain":
                search = words[1:2]
        if search is None:  # the machine's own domain, if its name has one
            search = [hostname.partition(".")[2]]
        domains = [domain.lower().strip(".") for domain in search]
        return cls(
            tuple(dict.fromkeys(servers))[:MAX_SERVERS] or (NameServer("127.0.0.1"),),
            tuple(dict.fromkeys(domain for domain in domains if domain))[:MAX_SEARCH],
        )


class ResolvConfFile:
    """The system's file, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._file = SystemFile(path, MAX_FILE)
        self.content = ResolvConf((), ())

    def refresh(self) -> bool:
        """Read the file if it has changed; whether it says something else now."""
        data = self._file.read_if_changed()
        if data is None:
            return False
        before = self.content
        self.content = ResolvConf.parse(data.decode("utf-8", "replace"), std_socket.gethostname())
        return self.content != before
