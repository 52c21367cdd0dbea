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
from typing import NamedTuple

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


class Shape(NamedTuple):
    """What lines have in common that differ in their places and credentials alone."""

    scheme: str | None
    options: str
    has_login: bool


class StraightLine(NamedTuple):
    """A line that was taken apart."""

    shape: Shape
    host: str
    port: int
    user: str | None
    password: str | None


class StraightLines:
    """The lines of one list, all of which are read with the same options."""

    def __init__(self) -> None:
        self._specs: dict[Shape, ExitSpec] = {}
        #: an object for each port, which all exits share
        self._ports: dict[str, int] = {}

    def parse(self, line: str) -> StraightLine | None:
        """The parts of a line; None if another parser has to read it."""
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        scheme, user, password, host, digits, last_user, last_password, options = found.groups()
        port = self._ports.get(digits)
        if port is None:
            port = self._ports[digits] = int(digits)
        if port > 0xFFFF:
            return None
        if last_user is not None:
            if user is not None:
                return None
            user, password = last_user, last_password
        return StraightLine(Shape(scheme, options, user is not None), host, port, user, password)

    def spec(self, line: StraightLine) -> ExitSpec | None:
        """The exit of a line; None if none of its shape has been learned."""
        known = self._specs.get(line.shape)
        return None if known is None else known.at(*line[1:])

    def learn(self, line: StraightLine, spec: ExitSpec) -> None:
        """``spec`` is what the other parser has made of a line."""
        if len(self._specs) < _MOST_SHAPES:
            self._specs[line.shape] = spec
