"""The commonest lines of long lists, on a straight way: one regular expression, and no URL.  ::

    10.0.0.7:8080                         socks5://10.0.0.7:1080
    10.0.0.7:8080:user:password           socks5://user:password@10.0.0.7:1080
    user:password@10.0.0.7:8080           10.0.0.7:8080 country=de tags=fast,cheap

The parser for everything else (list_lines.py, exits/spec.py) reads the first line of each *shape*:
scheme, options and whether there are credentials.  What it makes of that is what all lines of the
shape are but for their places and credentials, which need neither decoding nor checks here: an IPv4
address in its canonical form, and words of characters that mean nothing in any form of line.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from gsocks.exits.spec import ExitSpec

_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#: no longer than a user name or a password may be (RFC 1929)
_WORD = r"[A-Za-z0-9._-]{1,255}"

_LINE = re.compile(
    rf"((?:socks4a?|socks5h?|https?)://)?(?:({_WORD}):({_WORD})@)?"
    rf"({_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}):([1-9][0-9]{{0,4}})"
    rf"(?::({_WORD}):({_WORD}))?"
    r"((?: (?:country|tags)=[A-Za-z0-9,_-]+)*)",
)

#: shapes of one list that are known: a list with more of them has names of its own in each line
_MOST_SHAPES = 4096


#: what lines have in common that differ in their places and credentials alone: their scheme, their
#: options, and whether they have credentials
_Shape: TypeAlias = tuple["str | None", str, bool]


class StraightLines:
    """The lines of one list, all of which are read with the same options."""

    def __init__(self) -> None:
        self._specs: dict[_Shape, ExitSpec] = {}
        #: an object for each port, which all exits share
        self._ports: dict[str, int] = {}

    def read(self, line: str) -> ExitSpec | None:
        """The exit of a line; None if another parser has to read it."""
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        scheme, user, password, host, digits, last_user, last_password, options = found.groups()
        if last_user is not None:
            if user is not None:
                return None
            user, password = last_user, last_password
        known = self._specs.get((scheme, options, user is not None))
        if known is None:
            return None
        port = self._ports.get(digits)
        if port is None:
            port = self._ports[digits] = int(digits)
        if port > 0xFFFF:
            return None
        return known.at(host, port, user, password)

    def learn(self, line: str, spec: ExitSpec) -> None:
        """``spec`` is what the other parser has made of a line that :meth:`read` could not read."""
        found = _LINE.fullmatch(line) if len(self._specs) < _MOST_SHAPES else None
        if found is None:
            return
        scheme, user, _, _, _, last_user, _, options = found.groups()
        if user is None or last_user is None:
            self._specs[scheme, options, (user or last_user) is not None] = spec
