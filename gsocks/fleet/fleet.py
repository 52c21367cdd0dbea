"""A process as one of a fleet: its tables, quotas and checks, shared with the other gateways."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import Any, NamedTuple

import msgspec

from gsocks.access.throttle import Throttle
from gsocks.config.schema import State
from gsocks.crypto import RecordBox
from gsocks.fleet.changes import RunTimeChanges, SharedChanges
from gsocks.fleet.guesses import Guesses
from gsocks.fleet.hybrid_clock import HybridClock
from gsocks.fleet.kinds import kinds_of
from gsocks.fleet.leases import CheckLeases
from gsocks.fleet.limits import ExitConnections, ExitRequests, UserBandwidth, pair_limits
from gsocks.fleet.members import Member, Members
from gsocks.fleet.parts import SilentPart
from gsocks.fleet.quotas import ExitBytes, UserShares
from gsocks.fleet.shares import Limited, LimitShares
from gsocks.fleet.store import Store
from gsocks.fleet.sync import FleetSync
from gsocks.inbound.quota import UserQuota
from gsocks.keyfile import read_key
from gsocks.rotation.checks import Checks
from gsocks.rotation.group import ExitGroup

#: characters that a gateway's name may have
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.-]")

#: a command of an operator: its path, its section, its body
Execute = Callable[[Sequence[str], str, bytes], None]


class Load(NamedTuple):
    """How busy a process is."""

    connections: int
    requests: int
    ready: bool


class Fleet:
    """Shares what ``groups`` know, by the names of their sections, over the store of ``settings``.

    ``worker``: the index of this process among those of its gateway; ``load``: how busy it is.
    ``execute``: runs a command of an operator that another gateway was given.  ``wall``: seconds
    since the epoch, by the clock of this machine, which goes until the store's is known.
    Raises ConfigError if redis-py is missing or what the settings name can't be used.
    """

    def __init__(
        self,
        settings: State,
        groups: Mapping[str, ExitGroup],
        worker: int,
        load: Callable[[], Load],
        execute: Execute,
        version: str,
        wall: Callable[[], float] = time.time,
    ) -> None:
        name = settings.gateway or _UNUSUAL.sub("-", platform.node())[:64] or "gateway"
        self.gateway = name
        node = token_hex(4)
        self._since = time.time()
        self._worker = worker
        self._version = version
        self._load = load
        self.store = Store(settings, node)
        self.members = Members(
            node, self._own, lambda of: self.store.key("member", of), on_gone=self._gone
        )
        self.sync = FleetSync(self.store, self.members, HybridClock(node, wall), name)
        key = settings.shared_key_file
        self._box = None if key is None else RecordBox(read_key(key))
        self._changes: SharedChanges | None = None
        self._is_closed = settings.fail == "closed"
        for section, group in groups.items():
            self.sync.share(section, kinds_of(group))
            self._share_work(section, group)
        self._commands = _Commands(name, execute)
        self.sync.add(self._commands)

    def _share_work(self, section: str, group: ExitGroup) -> None:
        checks = [each for each in group.services if isinstance(each, Checks)]
        if checks:
            leases = CheckLeases(
                section, self.members, lambda shard: self.store.key("lease", section, shard)
            )
            self.sync.add(leases)
            for each in checks:
                each.is_mine = leases.is_mine
        self.sync.add(
            ExitBytes(
                section,
                group,
                self.members,
                lambda of: self.store.key("bytes", section, of),
                is_closed=self._is_closed,
            )
        )
        self._share(ExitRequests(f"exits:requests:{section}", group, self.members))
        self._share(ExitConnections(f"exits:connections:{section}", group, self.members))
        if group.roster.host_limits is not None:
            for limited in pair_limits(section, group.roster.host_limits, self.members):
                self._share(limited)

    def _share(self, limited: Limited) -> None:
        """Divide the limits of one kind among all processes."""
        self.sync.add(
            LimitShares(
                limited,
                self.members,
                self.sync.settling,
                lambda of: self.store.key("limits", limited.name, of),
                is_closed=self._is_closed,
            )
        )

    def share_quota(self, section: str, quota: UserQuota) -> None:
        """Have the quota of users hold over all gateways.  Before :meth:`start`."""
        shares = UserShares(
            section,
            self.sync,
            lambda user: self.store.key("users", section, user),
            is_closed=self._is_closed,
        )
        quota.shares = shares
        self.sync.add(shares)
        self._share(UserBandwidth(section, quota, self.members))

    def share_changes(self, changes: RunTimeChanges) -> None:
        """Have what the admin API changes reach all gateways, if they share a key.  Before
        :meth:`start`."""
        if self._box is not None:
            self._changes = SharedChanges(changes, self._box)
            self.sync.share("", [self._changes])

    def share_guesses(self, throttle: Throttle) -> None:
        """Have failed logins count at all gateways.  Before :meth:`start`."""
        self.sync.add(Guesses(throttle))

    def __repr__(self) -> str:
        return f"<Fleet {self.gateway} {self.sync}>"

    def start(self) -> None:
        """Read what the others know, and take part.  Blocks for some seconds at most."""
        self.sync.start()
        # what is stored here may be old: it counts where the store knows nothing
        if self._changes is not None and self.sync.is_in_touch:
            self._changes.tell_missing()

    def close(self) -> None:
        """Leave.  Blocks for some seconds at most."""
        self.sync.close()

    def listing(self) -> dict[str, Any]:
        """The members and the store, for people."""
        return {
            "gateway": self.gateway,
            "store": {"url": str(self.store.url), "state": self.sync.state},
            "members": self.members.listing(time.monotonic()),
        }

    @property
    def has_others(self) -> bool:
        """Whether other gateways are there."""
        return any(each.gateway != self.gateway for each in self.members.others.values())

    def command(self, path: Sequence[str], section: str, body: bytes) -> None:
        """Tell the other gateways of a command that this one executes."""
        self._commands.tell(path, section, body)
        self.sync.soon()

    def soon(self) -> None:
        """Tell at once what has changed."""
        self.sync.soon()

    def _own(self) -> Member:
        load = self._load()
        return Member(
            self.gateway,
            self._version,
            self._worker,
            self._since,
            load.connections,
            load.requests,
            round(time.process_time(), 3),
            load.ready,
        )

    def _gone(self, node: str) -> None:
        self.sync.gone(node)


class _Commands(SilentPart):
    """Commands of operators that change no record by themselves: reports.

    Bans, drains and moves of sessions are records, which those gateways learn too that are away.
    """

    name = "commands"
    has_events = True
    #: commands that wait while the store is away; of more the oldest are forgotten
    max_waiting = 1000
    max_body = 4096
    #: characters of bodies in one message, but for the last of them
    max_told = 65536

    def __init__(self, gateway: str, execute: Execute) -> None:
        self._gateway = gateway
        self._execute = execute
        self._waiting: list[list[Any]] = []

    def tell(self, path: Sequence[str], section: str, body: bytes) -> None:
        """Have others run a command, if it is one that they have to run themselves."""
        if not path or path[-1] != "report" or len(body) > self.max_body:
            return
        text = body.decode("utf-8", "replace")
        self._waiting.append([self._gateway, list(path), section, text])
        del self._waiting[: -self.max_waiting]

    def told(self, now: float) -> Any:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        size = count = 0
        for *_, body in self._waiting:
            size, count = size + len(body), count + 1
            if size > self.max_told:
                break
        told, self._waiting = self._waiting[:count], self._waiting[count:]
        return told or None

    def heard(self, node: str, told: Any, now: float) -> None:  # noqa: ARG002
        """Run what another gateway was told; the own workers have it from the admin already."""
        commands = msgspec.convert(told, list[tuple[str, list[str], str, str]])
        for gateway, path, section, body in commands:
            if gateway != self._gateway:
                self._execute(path, section, body.encode())
