"""The hosts file, hosts(5): names that need no name server."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

from gsocks.address import IPAddress, canonical_host, ip_of
from gsocks.dns.message import MAX_ADDRESSES
from gsocks.dns.system_file import SystemFile
from gsocks.errors import BadAddress
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
        #: the first name of each address, which is its canonical one, by its bytes
        self._names: dict[bytes, bytes] = {}

    def refresh(self) -> bool:
        """Read the file if it has changed; whether it has.  Other greenlets run meanwhile."""
        data = self._file.read_if_changed()
        if data is None:
            return False
        self._addresses, self._names = _parse(data)
        return True

    def get(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of ``name``, in their order in the file; empty if it is not in there."""
        found = self._addresses.get(name.lower().encode("ascii", "replace"), b"")
        ips = [ipaddress.ip_address(text.decode("ascii")) for text in found.split()]
        return tuple(dict.fromkeys(ip.ipv4_mapped or ip if ip.version == 6 else ip for ip in ips))

    def name_of(self, ip: IPAddress) -> str | None:
        """The name of an address; None if it is not in there, or no host can have its name."""
        try:
            name = canonical_host(self._names.get(ip.packed, b"").decode("ascii"))
        except (UnicodeDecodeError, BadAddress):
            return None
        return name if ip_of(name) is None else None


def _parse(data: bytes) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The addresses of each name, and the first name of each address."""
    found: dict[bytes, bytes] = {}
    names: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        words = line.partition(b"#")[0].lower().split()
        ip = _address(words[0]) if len(words) > 1 else None
        if ip is not None:
            address = words[0].partition(b"%")[0]
            names.setdefault(ip.packed, words[1])
            for name in words[1:]:
                before = found.get(name)
                if before is None:
                    found[name] = address
                elif before.count(b" ") < MAX_ADDRESSES - 1:
                    found[name] = before + b" " + address
        give_way()
    return found, names


def _address(text: bytes) -> IPAddress | None:
    try:
        ip = ipaddress.ip_address(text.partition(b"%")[0].decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return None
    return ip.ipv4_mapped or ip if ip.version == 6 else ip
