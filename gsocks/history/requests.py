"""The request log: one row for each request, and how it is searched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

#: rows of a page at most
MAX_PAGE = 1000

#: rows that are kept in memory
MAX_RECENT = 1000


class TryRow(NamedTuple):
    """A try of a request at an exit that has failed."""

    #: the exit's name
    exit: str
    #: the error's word, as an outcome
    why: str
    #: in words, without secrets
    detail: str
    #: seconds that it took
    seconds: float


class RequestRow(NamedTuple):
    """One request, when it has ended.  Times are seconds."""

    #: counts up in the order in which requests were logged, over restarts and workers; 0: not yet
    number: int
    #: when it began, by the wall clock
    time: float
    #: as in the access log: of two processes it may be the same
    id: str
    #: which listener, and which section's exits
    inbound: str
    section: str
    #: the client's address and port
    client: str
    #: empty: none
    user: str
    session: str
    #: ``connect``, ``udp_associate``, ...
    command: str
    #: host and port; with redaction of hosts a pseudonym that stays the same, and the port
    dest: str
    #: the name of the exit that served it, or was tried last; empty: none was
    exit: str
    #: the address that sites see, if it is known, or else the one that the exit has bound
    address: str
    #: ``ok`` or an error's word, and why in words
    outcome: str
    detail: str
    #: of an HTTP response, or an exit's refusal; 0: none
    status: int
    #: from the begin of its last try until it was connected; None: it was not
    connect: float | None
    #: from its begin until the first byte came back; None: none did
    first_byte: float | None
    #: from its begin to its end
    total: float
    #: bytes to the destination, and from it
    up: int
    down: int
    #: the tries that have failed, in their order
    tries: tuple[TryRow, ...]
    #: what it asked of the exits, in the words of a config; empty: nothing
    selector: str
    #: the exits that matched that, and those of them that were ready, when it was to be connected;
    #: None: it was not known
    matching: int | None
    ready: int | None
    #: by which policy, and why that exit, in words; empty: none was chosen
    choice: str


class RequestFilter(NamedTuple):
    """Which requests; what is None or empty selects all.

    A text selects what is equal to it; behind ``!`` what is not.
    """

    #: from this time on, and before that; wall clock
    since: float | None = None
    until: float | None = None
    #: an exit's name, that has served it or was tried
    exit: str = ""
    outcome: str = ""
    user: str = ""
    session: str = ""
    #: a host, without its port; ``.example.com`` selects its subdomains too
    dest: str = ""
    #: the client's address without its port
    client: str = ""
    inbound: str = ""
    #: as in the access log
    id: str = ""
    #: a status, such as ``403``
    status: str = ""
    #: a part of the destination, of the exit's name, the user, the session or the detail
    text: str = ""


#: selects all
EVERY_REQUEST = RequestFilter()


class Page(NamedTuple):
    """Some of the rows that were asked for, the latest first."""

    rows: list[RequestRow]
    #: ask for the next page with ``before`` of it; None: there are no more
    before: int | None
    #: whether the search was ended early, as it took too long; the next page goes on
    is_partial: bool = False


class RequestLog(Protocol):
    """What can be asked of the request log."""

    def search(
        self,
        which: RequestFilter = EVERY_REQUEST,
        limit: int = 100,
        before: int | None = None,
        after: int | None = None,
    ) -> Page:
        """The latest requests that match, ``limit`` at most, and :data:`MAX_PAGE`.

        ``before``, ``after``: only those with a lower, or higher, number.  To follow the log, ask
        again with the highest number that was returned as ``after``: a row is there a second after
        its request has ended.  Blocks the calling greenlet, never the loop.  Raises HistoryFailed.
        """


class RecentRequests:
    """The latest requests, in memory."""

    def __init__(self, most: int = MAX_RECENT) -> None:
        self._rows: deque[RequestRow] = deque(maxlen=most)
        self._number = 0

    def add(self, row: RequestRow) -> None:
        """Log a request, under the next number."""
        self._number += 1
        self._rows.append(row._replace(number=self._number))

    def search(
        self,
        which: RequestFilter = EVERY_REQUEST,
        limit: int = 100,
        before: int | None = None,
        after: int | None = None,
    ) -> Page:
        """See :meth:`RequestLog.search`."""
        limit = max(1, min(limit, MAX_PAGE))
        found: list[RequestRow] = []
        for row in reversed(self._rows):
            if (before is not None and row.number >= before) or not matches(row, which):
                continue
            if after is not None and row.number <= after:
                break
            if len(found) == limit:
                return Page(found, found[-1].number)
            found.append(row)
        return Page(found, None)


def matches(row: RequestRow, which: RequestFilter) -> bool:
    """Whether ``which`` selects the row."""
    if which.since is not None and row.time < which.since:
        return False
    if which.until is not None and row.time >= which.until:
        return False
    exits = {row.exit, *(each.exit for each in row.tries)} - {""}
    return (
        _selects(which.exit, exits)
        and _selects(which.outcome, (row.outcome,))
        and _selects(which.user, (row.user,))
        and _selects(which.session, (row.session,))
        and _selects(which.dest, _domains(host_of(row.dest)))
        and _selects(which.client, (host_of(row.client),))
        and _selects(which.inbound, (row.inbound,))
        and _selects(which.id, (row.id,))
        and _selects(which.status, (str(row.status),))
        and _has_text(row, which.text)
    )


def host_of(dest: str) -> str:
    """The host of ``HOST:PORT``; IPv6 without its brackets."""
    host, colon, _ = dest.rpartition(":")
    return host.strip("[]") if colon else dest


def _domains(host: str) -> Sequence[str]:
    """What selects a host: itself, and each of its domains behind a dot."""
    parts = host.split(".")
    return [host, *("." + ".".join(parts[at:]) for at in range(len(parts)))]


def _selects(wanted: str, values: Iterable[str]) -> bool:
    if not wanted:
        return True
    return wanted[1:] not in values if wanted.startswith("!") else wanted in values


def _has_text(row: RequestRow, text: str) -> bool:
    if not text:
        return True
    places = (row.dest, row.exit, row.user, row.session, row.detail)
    return any(text.lower() in place.lower() for place in places)
