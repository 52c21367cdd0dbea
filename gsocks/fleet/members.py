"""The membership: which processes of which gateways are there, and how busy they are.

Each tells of itself once a second, and has a key that expires, from which those that start later
learn of it at once.  There is no leader: who has which lease follows from the names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from gsocks.fleet.parts import Operation, SilentPart
from gsocks.fleet.store import Command

#: members that are listened to
MAX_MEMBERS = 4096


class Member(Struct, omit_defaults=True):
    """What a process tells of itself."""

    gateway: str
    version: str
    #: of a worker
    worker: int = 0
    #: seconds since the epoch
    since: float = 0.0
    connections: int = 0
    #: connections that have ended since it was started, and CPU seconds that it has used
    requests: int = 0
    cpu: float = 0.0
    #: whether it takes requests
    ready: bool = True


class Members(SilentPart):
    """The processes that are there; ``node`` is this one, and ``own`` tells of it.

    ``key``: makes the name of a key; ``on_gone`` is called with each that is not heard of any more.
    """

    name = "member"
    #: seconds between two signs of life, and without any after which a member is gone
    interval = 1.0
    patience = 4.0
    #: seconds after which the key of one that was killed expires
    expiry = 10.0

    def __init__(
        self,
        node: str,
        own: Callable[[], Member],
        key: Callable[[str], str],
        on_gone: Callable[[str], object],
    ) -> None:
        self.node = node
        self._own = own
        self._key = key
        self._on_gone = on_gone
        self._told_at = self._kept_at = float("-inf")
        #: the others, and when each was heard of last, in monotonic seconds
        self.others: dict[str, Member] = {}
        self._heard: dict[str, float] = {}
        #: the ids of all that are there, this one too, sorted
        self.nodes: list[str] = [node]

    def __repr__(self) -> str:
        return f"<Members {self.nodes}>"

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def rank(self) -> int:
        """The place of this process among all."""
        return self.nodes.index(self.node)

    def listing(self, now: float) -> list[dict[str, Any]]:
        """All members, for people."""
        found = [(self.node, self._own(), 0.0)]
        found += [(node, each, now - self._heard[node]) for node, each in self.others.items()]
        return sorted(
            (
                {"node": node, **msgspec.structs.asdict(each), "heard": round(ago, 3)}
                for node, each, ago in found
            ),
            key=lambda each: (each["gateway"], each["worker"], each["node"]),
        )

    # --- see gsocks.fleet.parts.Part ----------------------------------------------------------

    def operations(self, now: float) -> Iterable[Operation]:
        """Keep the own key."""
        for node in [each for each, at in self._heard.items() if now - at > self.patience]:
            self._forget(node)
        if now - self._kept_at >= self.expiry / 3:
            self._kept_at = now
            text = msgspec.json.encode(self._own())
            command = ("SET", self._key(self.node), text, "PX", int(self.expiry * 1000))
            yield Operation(command, lambda _: None)

    def told(self, now: float) -> Any:
        """The own state, once in an interval."""
        if now - self._told_at < self.interval:
            return None
        self._told_at = now
        return self._own()

    def heard(self, node: str, told: Any, now: float) -> None:
        """Another process is there."""
        member = msgspec.convert(told, Member)
        if node == self.node or (len(self.others) >= MAX_MEMBERS and node not in self.others):
            return
        is_new = node not in self.others
        self.others[node] = member
        self._heard[node] = now
        if is_new:
            self.nodes = sorted([self.node, *self.others])

    def lost(self, now: float) -> None:
        """Of a store that is away nothing can be heard: those that were there still are."""
        for node in self._heard:
            self._heard[node] = now
        self._kept_at = float("-inf")

    def found(self, node: str, text: bytes, now: float) -> None:
        """A member's key was read."""
        if node not in self.others:
            self.heard(node, msgspec.json.decode(text), now)

    def says_farewell(self, node: str) -> None:
        """Another process ends."""
        if node in self.others:
            self._forget(node)

    def farewell(self) -> Iterable[Command]:
        """Leave."""
        yield ("DEL", self._key(self.node))

    def _forget(self, node: str) -> None:
        del self.others[node], self._heard[node]
        self.nodes = sorted([self.node, *self.others])
        self._on_gone(node)


def owner(of: str, nodes: list[str]) -> str:
    """The node that is to have something, by rendezvous hashing: the same for all."""
    return max(nodes, key=lambda node: blake2b(f"{of} {node}".encode(), digest_size=8).digest())
