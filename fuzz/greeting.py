"""The common part of the SOCKS targets: one client, received in several divisions into pieces."""

from __future__ import annotations

from typing import Any, NamedTuple

from fuzz.wire import WAYS, Wire
from gsocks.access.login import OPEN, Authenticator
from gsocks.errors import ClientError
from gsocks.handshake import SpeaksHttp, negotiate
from gsocks.request import ANY, Command, Request

#: how the connection may go on behind the input
THENS = ("end", "silence", "reset", "end")
COMMANDS = frozenset(Command)


class Heard(NamedTuple):
    """What came of it."""

    #: None if the client was refused
    request: Request | None
    #: the kind of the refusal
    error: str
    told: bytes
    #: payload, and what was left unread
    behind: bytes


#: a listener that requires a password
ALICE = Authenticator(lambda name, password: (name, password) == ("alice", b"secret"), {"alice"})


def hear(said: bytes, *, users: bool, then: str) -> Heard:
    """The result of negotiate for ``said``, which is the same in any division into pieces."""
    results = {_hear_once(Wire(said, pieces, then), users=users) for pieces in WAYS}
    assert len(results) == 1, results
    return results.pop()


def _hear_once(wire: Any, *, users: bool) -> Heard:
    try:
        asked = negotiate(wire, ALICE if users else OPEN, COMMANDS)
    except ClientError as error:
        return Heard(None, error.word, bytes(wire.told), b"")
    if isinstance(asked, SpeaksHttp):
        return Heard(None, "http", bytes(wire.told), asked.said + wire.rest)
    request = asked[0]
    behind = request.payload + wire.rest
    return Heard(request._replace(payload=b"", selector=ANY), "", bytes(wire.told), behind)
