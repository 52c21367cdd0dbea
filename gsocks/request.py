"""A client's request: its destination, and which exits may serve it."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

from gsocks.address import Address
from gsocks.messages import shown
from gsocks.observe import Details, Trace, no_trace
from gsocks.units import format_duration

#: characters of a session's id, of a tag and of an exit's name
MAX_WORD = 64

_SESSION = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_WORD}}}")
_WORD = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_WORD - 1}}}")
_COUNTRY = re.compile(r"[A-Za-z]{2}")


class ExitSelector(NamedTuple):
    """Which exits may serve a request; the attributes that are not set select every exit."""

    #: the session's id: requests of the same session have the same exit
    session: str | None = None
    #: seconds for which a session keeps its exit, from its first use; None: the listener's bound
    lifetime: float | None = None
    #: the exit's country: two letters, lower case
    country: str | None = None
    #: the exit has all of them; lower case, sorted, without duplicates
    tags: tuple[str, ...] = ()
    #: the exit's name, lower case
    exit: str | None = None
    #: a request of the session fails rather than move it to another exit
    strict: bool = False

    def __str__(self) -> str:
        """The attributes that are set, in the words of a config."""
        values: dict[str, object] = {"session": self.session}
        if self.lifetime is not None:
            values["lifetime"] = format_duration(self.lifetime)
        values |= {"country": self.country, "tags": " ".join(self.tags), "exit": self.exit}
        texts = [f"{key} {value}" for key, value in values.items() if value]
        return ", ".join([*texts, "strict"] if self.strict else texts)

    def merge(self, other: ExitSelector) -> ExitSelector:
        """The attributes of this selector, and of ``other`` those that this one doesn't set."""
        return ExitSelector(
            self.session or other.session,
            self.lifetime or other.lifetime,
            self.country or other.country,
            self.tags or other.tags,
            self.exit or other.exit,
            self.strict or other.strict,
        )


#: selects every exit
ANY = ExitSelector()


def as_session(text: object) -> str:
    """``text``, if it is a valid session id.  Raises ValueError, as the functions below do."""
    if isinstance(text, str) and _SESSION.fullmatch(text):
        return text
    raise ValueError(
        f"{shown(text)} is not a session (expected at most {MAX_WORD} letters, digits, _ . -)"
    )


def as_country(text: object) -> str:
    """A country's two letters, in lower case."""
    if isinstance(text, str) and _COUNTRY.fullmatch(text):
        return text.lower()
    raise _not(text, "a country", "a two-letter code such as de")


def as_tag(text: object) -> str:
    """A tag, in lower case."""
    return _word(text, "a tag", "a word such as residential")


def as_exit(text: object) -> str:
    """An exit's name, in lower case."""
    return _word(text, "the name of an exit", "a word such as berlin-1")


def _word(text: object, what: str, expected: str) -> str:
    if isinstance(text, str) and _WORD.fullmatch(text):
        return text.lower()
    raise _not(text, what, expected)


def _not(value: object, what: str, expected: str) -> ValueError:
    # YAML reads NO as false and 010 as 8
    hint = "" if isinstance(value, str) else "; in YAML, put quotes around it"
    return ValueError(f"{shown(value)} is not {what} (expected {expected}{hint})")


class Command(IntEnum):
    """CMD of RFC 1928 section 4, and of Tor's SOCKS extensions."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1

    def __init__(self, _value: int) -> None:
        #: for the log, such as ``udp_associate``
        self.word = self.name.lower()


# The same, for what each request passes: Python 3.11 takes as long to find a member in its enum as
# to call a function.
CONNECT, BIND, UDP_ASSOCIATE, RESOLVE, RESOLVE_PTR = Command

#: the commands that connect to nothing: they ask for the address of a name, or the name of an
#: address
LOOK_UPS = frozenset({RESOLVE, RESOLVE_PTR})


class Request(NamedTuple):
    """One request, and its user."""

    command: Command
    dest: Address
    #: the authenticated user, or at a tunnel's far end the name of its key
    user: str | None = None
    #: the bytes that the client sent right behind its request: the first of the stream
    payload: bytes = b""
    #: which exits may serve it
    selector: ExitSelector = ANY
    #: an exit that supports it may report success before it is connected; a later failure is
    #: raised by the stream, as :class:`gsocks.errors.Withdrawn`
    fast_open: bool = False
    #: HTTP statuses of an exit's own answer by which other exits are tried
    retry_on: frozenset[int] = frozenset()
    #: the client's IP address and port; empty in a program that has no clients
    client: str = ""
    #: logs at debug level what happens to it, under the id of its connection
    trace: Trace = no_trace
    #: in how many tunnels the exit that gets it has asked its server for it before
    asked: int = 0
    #: takes what is told of it beyond its access line; None: no observer wants that
    details: Details | None = None
