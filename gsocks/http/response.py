"""The head of a response: its end, its repair where browsers read it all the same, its parts.

h11 parses a head that is valid.  One that is not is read as curl and browsers read it (RFC 9112
sections 2.2, 5.1, 5.2 and 6.3) and written anew, so that only valid heads are passed on: what the
client gets has one reading, whatever the server sent.  What stays ambiguous is refused: several
lengths, unknown codings.

A server may have meant another end of such a message than was found.  So its connection must not be
used for another request, which :attr:`ResponseReader.repaired` says.
"""

from __future__ import annotations

import re
from typing import TypeAlias, cast

import h11

from gsocks.errors import BadResponse
from gsocks.http.body import CODINGS, MAX_CODINGS, Body, body_of_response
from gsocks.http.head import error_reason, wants_trailers
from gsocks.http.message import parse_response
from gsocks.http.token import TOKEN

#: bytes of a head; Chromium's own bound, and about curl's
MAX_HEAD = 256 * 1024

#: lines of a head, each of which takes its time; no server has a tenth of them
MAX_LINES = 2000

#: interim heads (1xx) of one response: as many as a server sends in 85 minutes of work on a request
#: if it says so every 20 seconds, which is how often RFC 2518 section 10.1 would have it (102)
MAX_INTERIM = 256

_BEGINNING = b"HTTP/"
# Lines of a server may end in LF only.
_END = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/[0-9]\.[0-9] ([0-9]{3})")
#: what h11 takes for a space in a value, or refuses after a second for each KiB of spaces before it
_CONTROL_BYTES = re.compile(rb"[\v\f]|\r(?!\n)")
_NAME = re.compile(TOKEN.encode("ascii"))

_Head: TypeAlias = h11.Response | h11.InformationalResponse


def take_head(buffer: bytearray, new: int) -> bytes:
    """The complete head at the beginning of ``buffer``, which loses it; b"" if it is incomplete.

    ``new``: the bytes at the end of ``buffer`` that no earlier call has seen.  Raises BadResponse.
    """
    if not buffer.startswith(_BEGINNING) and not _BEGINNING.startswith(buffer):
        raise BadResponse("the server's response is not HTTP")
    found = _END.search(buffer, max(0, len(buffer) - new - 2))
    end = found.end() if found else len(buffer)
    if end > MAX_HEAD:
        raise BadResponse(f"the server's response has a head of more than {MAX_HEAD} bytes")
    if found is None:
        return b""
    head = bytes(buffer[:end])
    if head.count(b"\n") > MAX_LINES:
        raise BadResponse(f"the server's response has a head of more than {MAX_LINES} lines")
    del buffer[:end]
    return head


class ResponseReader:
    """Reads the heads of the responses to ``request``."""

    def __init__(self, request: h11.Request) -> None:
        self._request = request
        #: for heads that are not plain; made for the first of them
        self._http: h11.Connection | None = None
        #: the transfer codings besides chunked, in the order in which they were applied
        self._codings: tuple[bytes, ...] = ()
        #: whether a head was not valid as it came
        self.repaired = False
        #: interim heads so far
        self._interim = 0

    def parse(self, head: bytes) -> _Head:
        """The response that :func:`take_head` has found.

        Raises BadResponse, also for one interim head too many.
        """
        parsed = self._parse(head)
        if type(parsed) is h11.InformationalResponse:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise BadResponse(f"the server sends more than {MAX_INTERIM} interim responses")
        return parsed

    def _parse(self, head: bytes) -> _Head:
        plain = parse_response(head)
        if plain is not None:
            return plain
        if b"\0" in head:
            raise BadResponse("the server's response has a NUL in its head")
        if not _CONTROL_BYTES.search(head):
            try:
                return self._next_event(head)
            except h11.RemoteProtocolError:
                pass
        self.repaired = True
        try:
            return self._next_event(self._repair(head))
        except h11.RemoteProtocolError as error:
            raise BadResponse(
                f"the server's response is not HTTP/1.1: {error_reason(error)}"
            ) from None

    def body(self, response: h11.Response) -> Body:
        """What finds the end of the body behind ``response``, the last head."""
        request = self._request
        keeps = wants_trailers(request)
        return body_of_response(response, request.method, self._codings, keep_trailers=keeps)

    def _next_event(self, head: bytes) -> _Head:
        http = self._http
        if http is None or http.their_state is h11.ERROR:
            # It remains in that state.  A new one expects the same response, and the request's body
            # is of no concern to it.
            http = self._http = h11.Connection(h11.CLIENT)
            http.send(self._request)
        http.receive_data(head)
        event = http.next_event()
        return cast(_Head, event)  # the head is complete, so this is no NEED_DATA

    def _repair(self, head: bytes) -> bytes:
        first, *lines = (line.removesuffix(b"\r") for line in head.rstrip(b"\r\n").split(b"\n"))
        fields = _fields([_CONTROL_BYTES.sub(b" ", line) for line in lines])
        status = _STATUS.match(first)
        if self._request.method == b"CONNECT" and status is not None and status[1][:1] == b"2":
            # The tunnel begins behind the head, whatever these say (RFC 9110 section 9.3.6).
            fields = [field for field in fields if field[0].lower() not in _FRAMING]
        else:
            fields = self._one_framing(fields)
        lines = [_CONTROL_BYTES.sub(b" ", first), *(b": ".join(field) for field in fields)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _one_framing(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """``fields`` with one framing (RFC 9112 section 6.3): chunks, a length or until EOF.

        Codings other than chunked are the body's to remove.
        """
        values = [value for name, value in fields if name.lower() == _TRANSFER_ENCODING]
        words = [word.partition(b";")[0].strip().lower() for word in b",".join(values).split(b",")]
        codings = [word for word in words if word not in (b"", b"identity")]
        if not codings:
            # "identity" is no coding; curl and browsers go by the length
            return [field for field in fields if field[0].lower() != _TRANSFER_ENCODING]
        chunked = codings[-1] == b"chunked"
        # some servers say twice what they did once
        while codings and codings[-1] == b"chunked":
            codings.pop()
        if not CODINGS.issuperset(codings):
            raise BadResponse("the server's response has an unknown transfer coding")
        if len(codings) > MAX_CODINGS:
            raise BadResponse(f"the server's response has more than {MAX_CODINGS} transfer codings")
        self._codings = tuple(codings)
        fields = [field for field in fields if field[0].lower() not in _FRAMING]
        if chunked:
            fields.append((b"Transfer-Encoding", b"chunked"))
        return fields


_TRANSFER_ENCODING = b"transfer-encoding"
_FRAMING = frozenset({_TRANSFER_ENCODING, b"content-length"})


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The fields that have a name, without the blanks around it."""
    fields: list[tuple[bytes, bytes]] = []
    folded: list[list[bytes]] = []
    for line in lines:
        if line[:1] not in (b" ", b"\t"):
            folded.append([line])
        elif folded:  # in front of the first field it is nothing (RFC 9112 section 2.2)
            folded[-1].append(line.strip(b" \t"))
    for parts in folded:
        name, colon, value = b" ".join(parts).partition(b":")
        name = name.rstrip(b" \t")
        if colon and _NAME.fullmatch(name):
            fields.append((name, value.strip(b" \t")))
    return fields
