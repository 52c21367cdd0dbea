"""After the store has lost what it had: until when no share of a limit may grow.

A share that grew before another process has told the store what it uses would be granted of that.
So each process tells its shares first, and then enters its name in a set of the store, which a loss
takes away with all else; once all are in it, or :attr:`Settling.longest` later, shares may grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gsocks.fleet.members import Members
from gsocks.fleet.parts import Operation, SilentPart


class Settling(SilentPart):
    """The settling of a store that has lost all; ``key`` names the set of those that have told.

    ``is_untold``: whether this process has still to tell of its shares; ``soon`` has the store
    asked at once.
    """

    name = "settling"
    #: seconds that a process which does not tell is waited for, after this one has told all.  It
    #: has to exceed the pause between two attempts to reach a store that is back
    longest = 0.6
    #: seconds between two looks at who has told
    pause = 0.05
    #: milliseconds for which the set is kept
    lasts = 60_000

    def __init__(
        self,
        members: Members,
        key: Callable[[], str],
        is_untold: Callable[[], bool],
        soon: Callable[[], object],
    ) -> None:
        self._members = members
        self._key = key
        self._is_untold = is_untold
        self._soon = soon
        #: in monotonic seconds, when shares may grow again
        self.until = float("-inf")
        self._told: frozenset[str] = frozenset()
        #: whether the own name may be entered, is on its way, and was entered
        self._may_enter = self._is_entering = self._has_entered = False

    def __repr__(self) -> str:
        return f"<Settling until={self.until:.3f} told={len(self._told)}>"

    def is_on(self, now: float) -> bool:
        """Whether no share may grow."""
        return now < self.until

    # --- see gsocks.fleet.parts.Part ----------------------------------------------------------

    def operations(self, now: float) -> Iterable[Operation]:
        """Enter the own name, and see who else has."""
        if self._may_enter and not self._has_entered:
            self._is_entering = True
            yield Operation(("SADD", self._key(), self._members.node), lambda _: None)
            yield Operation(("PEXPIRE", self._key(), self.lasts), lambda _: None)
        if self.is_on(now):
            yield Operation(("SMEMBERS", self._key()), self._answered)

    def _answered(self, names: Iterable[bytes]) -> None:
        self._told = frozenset(name.decode("ascii", "replace") for name in names)

    def emptied(self, now: float) -> None:
        """See :class:`gsocks.fleet.parts.Part`, as for the methods below."""
        self.until = now + self.longest
        self._told = frozenset()
        self._may_enter = self._is_entering = self._has_entered = False

    def exchanged(self, now: float) -> None:
        if self._is_entering:
            self._is_entering, self._has_entered = False, True
        self._may_enter = not self._is_untold()
        if not self.is_on(now):
            return
        if not self._may_enter:  # the others may have as much to tell
            self.until = now + self.longest
        if not self._has_entered:
            self._soon()
        elif self._told.issuperset(self._members.nodes):
            self.until = now

    def lost(self, now: float) -> None:  # noqa: ARG002
        self._is_entering = False
