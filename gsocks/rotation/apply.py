"""Replaces a listener's exits at run time; open connections are not affected."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from gevent.lock import BoundedSemaphore

from gsocks.errors import ConfigError
from gsocks.events import note
from gsocks.exits import ExitDeps, ExitSpec
from gsocks.exits.spec import derived_name
from gsocks.rotation.build import make_offers
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Changes, Member
from gsocks.rotation.sources import Source
from gsocks.rotation.watch import ExitListWatcher
from gsocks.turns import give_way, without_collection

log = logging.getLogger("gsocks.sources")

#: exits that a log line names
_MAX_NAMED = 5


class ExitUpdater:
    """Updates ``exit_group`` whenever ``watcher`` reports other exits.

    ``inbound``: the listener's name in the log.  ``deps``: the dependencies of new exits, the same
    as of those that the group has already.
    """

    def __init__(
        self, inbound: str, exit_group: ExitGroup, deps: ExitDeps, watcher: ExitListWatcher
    ) -> None:
        self._inbound = inbound
        self._exit_group = exit_group
        self._exit_deps = deps
        self._watcher = watcher
        self._replacing = BoundedSemaphore()
        #: what the admin API has put in the place of exits, or removed, by their names
        self._put: dict[str, ExitSpec] = {}
        self._removed: frozenset[str] = frozenset()
        watcher.follow(self._on_change)

    def replace(self, exits: Sequence[ExitSpec], sources: Sequence[Source]) -> None:
        """Take the exits and lists of a reloaded config.

        Raises ConfigError, and changes nothing, if there is no exit or one that can't be made.
        """
        with self._replacing:  # a fetch may take a while, and another reload may come meanwhile
            self._watcher.replace(exits, sources)
            self._watcher.tell(self._apply)

    def change(self, put: Mapping[str, ExitSpec], removed: Iterable[str]) -> None:
        """Have these exits besides, or in the place of those of their names, and not those of the
        ``removed`` names, whatever the config and the lists say from now on.

        Raises ConfigError, and changes nothing, if no exit would be left.
        """
        with self._replacing:
            before = self._put, self._removed
            self._put, self._removed = dict(put), frozenset(removed)
            try:
                self._watcher.tell(self._apply)
            except ConfigError:
                self._put, self._removed = before
                raise

    def source_of(self, member: Member) -> str:
        """``config``, ``api``, or the list that an exit comes from."""
        if self._put and self._put.get(member.name) == member.key:
            return "api"
        return self._watcher.origin_of(member.key)

    def close(self) -> None:
        """Stop watching the lists."""
        self._watcher.close()

    def _on_change(self, exits: Sequence[ExitSpec]) -> None:
        try:
            self._apply(exits)
        except ConfigError as error:
            log.error("%s: exits not reloaded, keeping the previous ones: %s", self._inbound, error)

    def _apply(self, exits: Sequence[ExitSpec]) -> None:
        group = self._exit_group
        with without_collection():
            changes = group.update(make_offers(self._changed(exits), self._exit_deps, group))
        if changes.added or changes.removed:
            words = _in_words(changes, len(group.roster))
            log.info("%s: %s", self._inbound, words)
            note("exits", f"{self._inbound}: {words}")

    def _changed(self, exits: Sequence[ExitSpec]) -> Sequence[ExitSpec]:
        if not self._put and not self._removed:
            return exits
        found, left, specs = [], dict(self._put), set(self._put.values())
        for spec in exits:
            give_way()
            name = spec.name or derived_name(spec.label)
            if name in left:
                found.append(left.pop(name))
            elif name not in self._removed and name not in self._put and spec not in specs:
                found.append(spec)
        return [*found, *left.values()]


def _in_words(changes: Changes, count: int) -> str:
    parts = [
        f"{what} {_some(members)}"
        for what, members in (("added", changes.added), ("removed", changes.removed))
        if members
    ]
    return f"{' and '.join(parts)}: {count} exits now"


def _some(members: Sequence[Member]) -> str:
    more = len(members) - _MAX_NAMED
    labels = ", ".join(member.label for member in members[:_MAX_NAMED])
    return f"{labels} and {more} more" if more > 0 else labels
