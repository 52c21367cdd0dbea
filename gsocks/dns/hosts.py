"""The hosts file, hosts(5): names that need no name server."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

from gsocks.address import IPAddress
from gsocks.dns.message import MAX_ADDRESSES
from gsocks.dns.system_file import SystemFile
from gsocks.turns import give_way

log = logging.getLogger("gsocks.dns")

#: bytes of the file that are read; lists that block advertisements have some 6 MiB
MAX_FILE = 32 * 1024 * 1024


class HostsFile:
    """The addresses of names in a hosts file, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._file = SystemFile(path, MAX_FILE)
        #: by name, in lower case; one text for the addresses of each, which is a third of the size
        self._addresses: dict[bytes, bytes] = {}

    def refresh(self) -> bool:
        """Read the file if it has changed; whether it has.  Other greenlets run meanwhile."""
        data = self._file.read_if_changed()
        if data is None:
            return False
        self._addresses = _parse(data)
        return True

    def get(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of ``name``, in their order in the file; empty if it is not in there."""
        found = self._addresses.get(name.lower().encode("ascii", "replace"), b"")
        ips = [ipaddress.ip_address(text.decode("ascii")) for text in found.split()]
        return tuple(dict.fromkeys(ip.ipv4_mapped or ip if ip.version == 6 else ip for ip in ips))


def _parse(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        words = line.partition(b"#")[0].lower().split()
        if len(words) > 1 and _is_address(words[0]):
            address = words[0].partition(b"%")[0]
            for name in words[1:]:
                before = found.get(name)
                if before is None:
                    found[name] = address
                elif before.count(b" ") < MAX_ADDRESSES - 1:
                    found[name] = before + b" " + address
        give_way()
    return found


def _is_address(text: bytes) -> bool:
    try:
        ipaddress.ip_address(text.partition(b"%")[0].decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return False
    return True
