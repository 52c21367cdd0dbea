"""Where a listener is, as it is written: an address, a Unix socket, a socket that is passed on.

127.0.0.1:1080
unix:/run/gsocks.sock        unix:/run/gsocks.sock?mode=660
systemd:gsocks.socket        systemd:
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from gsocks.address import Address
from gsocks.errors import BadAddress, BadPort
from gsocks.messages import Mistake, shown

UNIX = "unix:"
SYSTEMD = "systemd:"

#: bytes of a Unix socket's path: ``sun_path`` of unix(7), without its end
MAX_PATH = 107

#: of a Unix socket's file: its owner alone may connect
DEFAULT_MODE = 0o600

_MODE = re.compile(r"mode=0?([0-7]{3})")

# what a name in LISTEN_FDNAMES is made of, sd_listen_fds_with_names(3)
_NAME = re.compile(r"[!-9;-~]{0,255}")


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A Unix socket, by the path of its file.  Two are equal if the paths are."""

    path: str
    #: the permissions of the file: who may write it, may connect
    mode: int = field(default=DEFAULT_MODE, compare=False)

    def __str__(self) -> str:
        return f"{UNIX}{self.path}"


@dataclass(frozen=True, slots=True)
class Activated:
    """The sockets that were opened under that name by what has started the program.

    With an empty name, those of the only name that there is.
    """

    name: str

    def __str__(self) -> str:
        return f"{SYSTEMD}{self.name}"


Endpoint: TypeAlias = Address | UnixPath | Activated


def parse_endpoint(text: object, base: Path = Path()) -> Endpoint:
    """An endpoint from its text; a relative path is relative to ``base``.  Raises Mistake."""
    if isinstance(text, str) and text.startswith(UNIX):
        return _unix_path(text.removeprefix(UNIX), base)
    if isinstance(text, str) and text.startswith(SYSTEMD):
        name = text.removeprefix(SYSTEMD)
        if not _NAME.fullmatch(name):
            raise Mistake(f"{shown(text)} is not a socket of systemd (expected systemd:NAME)")
        return Activated(name)
    return parse_address(text)


def parse_address(text: object) -> Address:
    """An IP address and a port, from text.  Raises Mistake."""
    try:
        address = Address.parse(text if isinstance(text, str) else "")
    except BadPort as error:
        raise Mistake(str(error)) from None
    except BadAddress:
        address = NOWHERE
    return checked(address, text)


#: in place of what is no address at all
NOWHERE = Address("", 0)


def checked(address: Address, given: object) -> Address:
    """``address`` if it can be listened on, where ``given`` was written for it.  Raises Mistake."""
    if address.host == "localhost":
        return Address("127.0.0.1", address.port)
    # A name would be looked up anew at each start, and could come to mean another interface.
    if address.ip is None:
        raise Mistake(
            f"{shown(given)} is not an address to listen on"
            " (expected e.g. 127.0.0.1:1080, [::1]:1080 or 0.0.0.0:1080)"
        )
    return address


def _unix_path(text: str, base: Path) -> UnixPath:
    path, mark, option = text.partition("?")
    if not path or not path.isprintable():
        raise Mistake("unix: needs the path of a socket (expected e.g. unix:/run/gsocks.sock)")
    mode = DEFAULT_MODE
    if mark:
        found = _MODE.fullmatch(option)
        if found is None:
            raise Mistake(f"{shown(option)} is not the mode of a socket (expected e.g. ?mode=660)")
        mode = int(found[1], 8)
    whole = str(base / os.path.expanduser(path))
    if len(os.fsencode(whole)) > MAX_PATH:
        raise Mistake(f"a Unix socket's path has at most {MAX_PATH} bytes, and this one more")
    return UnixPath(whole, mode)
