"""Finds exits that lead back here by a way that no address shows.

Two gateways may be each other's exits, or three in a ring, and a NAT may lead a public address back
to this machine.  Then each request comes back, and is sent once more, until timeouts or descriptors
end it.  Nothing in a request tells, since SOCKS has no place for it.  But the requests that wait
for an answer of the exit add up.  So an exit that has many is asked for a name that only this
process knows: if that is asked for here while it waits for the answer, the exit leads back.

Such an exit fails at once for a while.  Each process looks for itself.
"""

from __future__ import annotations

import logging
import time
from secrets import token_hex

import gevent

from gsocks.address import Address
from gsocks.deadline import call_with_timeout
from gsocks.errors import GsocksError, LoopDetected
from gsocks.request import Command, Request
from gsocks.rotation.member import Member

log = logging.getLogger("gsocks.rotation")

#: names that exist nowhere (RFC 6761 section 6.4)
_SUFFIX = ".loop.invalid"


class LoopProbes:
    """The probes of one exit group."""

    #: requests that wait for an answer of an exit, at which it is asked
    many = 32
    #: seconds that an exit has to answer
    timeout = 5.0
    #: seconds for which an answer counts
    fresh = 300.0

    def __init__(self) -> None:
        #: the names that were asked for and have not come back.  Of this group alone: a request may
        #: pass through another one of this process, as from ``local`` to ``server``, and end there.
        self.asked: set[str] = set()
        #: when each exit with many requests is asked again; in the past or present alone
        self._ask_at: dict[Member, float] = {}
        #: until when exits that lead back are not used
        self._found: dict[Member, float] = {}
        self._probes: set[gevent.Greenlet[[Member], None]] = set()

    def arrived(self, dest: Address) -> None:
        """A request for ``dest`` has come in.  Raises LoopDetected if it has come back."""
        if dest.host.endswith(_SUFFIX) and dest.host in self.asked:
            self.asked.discard(dest.host)
            raise LoopDetected("this request has come back")

    def about_to_ask(self, member: Member) -> None:
        """A request is about to be sent to an exit.  Raises LoopDetected if that leads back."""
        if self._found and member in self._found:
            if time.monotonic() < self._found[member]:
                raise LoopDetected(f"{member.label}: leads back to this gateway")
            del self._found[member]
        if member.health.in_flight >= self.many:
            now = time.monotonic()
            if now >= self._ask_at.get(member, now):
                self._ask_at[member] = now + self.fresh
                probe = gevent.spawn(self._probe, member)
                self._probes.add(probe)
                probe.rawlink(self._probes.discard)

    def forget(self, member: Member) -> None:
        """The exit was removed."""
        self._ask_at.pop(member, None)
        self._found.pop(member, None)

    def close(self) -> None:
        """End the probes that are running.  Never blocks."""
        for probe in list(self._probes):
            probe.kill(block=False)

    def _probe(self, member: Member) -> None:
        name = token_hex(16) + _SUFFIX
        self.asked.add(name)
        try:
            call_with_timeout(self.timeout, self._ask, member, name, on_timeout=None)
        finally:
            came_back = name not in self.asked
            self.asked.discard(name)
        if came_back:
            self._found[member] = time.monotonic() + self.fresh
            log.warning(
                "exit %s (%s) leads back to this gateway, and is not used for %.0f s",
                member.name,
                member.label,
                self.fresh,
            )

    @staticmethod
    def _ask(member: Member, name: str) -> None:
        try:
            member.exit.connect(Request(Command.CONNECT, Address(name, 443))).stream.abort()
        except GsocksError:
            pass  # as expected of a name that does not exist
