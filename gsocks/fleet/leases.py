"""Which process checks which exits: the exits in shards, each with a lease in the store.

The owner of a shard follows from the members' names; the lease sees to it that there is one at a
time while members come and go.  Without the store each process checks all exits, as if alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b

from gsocks.fleet import scripts
from gsocks.fleet.members import Members, owner
from gsocks.fleet.parts import Operation, SilentPart
from gsocks.fleet.store import Command

#: the exits of a section
SHARDS = 32


class CheckLeases(SilentPart):
    """The leases of ``section``; ``key`` makes the name of a key of a shard."""

    #: seconds between two renewals, and after which one that is not renewed is over
    interval = 2.0
    expiry = 6.0

    def __init__(self, section: str, members: Members, key: Callable[[str], str]) -> None:
        self.name = f"leases:{section}"
        self._members = members
        self._key = key
        self._held: set[int] = set()
        self._due = float("-inf")
        self._is_alone = True

    def __repr__(self) -> str:
        return f"<CheckLeases {self.name} held={len(self._held)}>"

    def is_mine(self, exit_: str) -> bool:
        """Whether this process is to check the exit of that name."""
        return self._is_alone or shard_of(exit_) in self._held

    def operations(self, now: float) -> Iterable[Operation]:
        """Take and keep the own leases, and give up those that others are to have."""
        if now < self._due:
            return
        self._due = now + self.interval
        node, lasts = self._members.node, int(self.expiry * 1000)
        for shard in range(SHARDS):
            key = self._key(str(shard))
            if owner(f"{self.name} {shard}", self._members.nodes) == node:
                command: Command = ("EVAL", scripts.LEASE, 1, key, node, lasts)
                yield Operation(command, partial(self._answered, shard))
            elif shard in self._held:
                self._held.discard(shard)
                yield Operation(("EVAL", scripts.RELEASE, 1, key, node), lambda _: None)

    def exchanged(self, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        self._is_alone = False

    def lost(self, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        self._is_alone = True
        self._held.clear()
        self._due = float("-inf")

    def emptied(self, now: float) -> None:  # noqa: ARG002
        """Have the leases again, before a process takes them that knows of no other yet."""
        self._due = float("-inf")

    def gone(self, node: str) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        self._due = float("-inf")

    def farewell(self) -> Iterable[Command]:
        """Give all leases up."""
        for shard in self._held:
            yield ("EVAL", scripts.RELEASE, 1, self._key(str(shard)), self._members.node)

    def _answered(self, shard: int, answer: object) -> None:
        (self._held.add if answer == 1 else self._held.discard)(shard)


def shard_of(exit_: str) -> int:
    """The shard of an exit, by its name."""
    return blake2b(exit_.encode(), digest_size=2).digest()[0] % SHARDS
