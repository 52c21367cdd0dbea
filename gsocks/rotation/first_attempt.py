"""The first attempt of a request, from which a greenlet goes on."""

from __future__ import annotations

from gsocks.errors import GsocksError
from gsocks.rotation.roster import Member


class FirstAttempt:
    """What the hub has made of a request's first attempt (rotation/beginning.py).

    Its exit was chosen by the rules, the policy and the limits that count for any attempt.
    """

    __slots__ = ("asked", "began", "failure", "member", "timed_out")

    def __init__(
        self,
        member: Member,
        began: float,
        failure: GsocksError | None = None,
        *,
        timed_out: bool = False,
        asked: int = 0,
    ) -> None:
        #: the exit
        self.member = member
        #: monotonic seconds: when the request was sent to it
        self.began = began
        #: why it has failed; None: it counts the request already, but has yet to be asked, or to be
        #: asked again
        self.failure = failure
        #: as of :class:`gsocks.request.Request`
        self.asked = asked
        #: whether the time of the request is over
        self.timed_out = timed_out
