"""The exits among which a session has its own, as the roster knows them."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from gsocks.request import Request
from gsocks.rotation.roster import FEW, Member, Roster
from gsocks.rotation.session import Like, ListedExits, SessionExits, SessionKey, winner


def session_exits(
    roster: Roster,
    request: Request,
    excluded: Collection[Member],
    pending: Member | None,
    now: float,
) -> SessionExits[Member]:
    """The exits that fit ``request``, of which there must be one.

    ``excluded`` have failed the request already; ``pending`` may be used by it, whatever is in
    doubt about it.
    """
    selector = request.selector
    if selector.exit is None and not roster.is_short:
        return _ManyExits(roster, request, excluded, pending, now)
    available = roster.available(request, excluded, now)
    if pending is not None and pending not in available:
        available = [*available, pending]
    return ListedExits(selector, roster.matching(selector, request.command), available)


class _ManyExits:
    """So many that none of them is looked for."""

    def __init__(
        self,
        roster: Roster,
        request: Request,
        excluded: Collection[Member],
        pending: Member | None,
        now: float,
    ) -> None:
        self._roster = roster
        self._request = request
        self._excluded = excluded
        self._pending = pending
        self._now = now

    def named(self, name: str, /) -> Member | None:
        """See :class:`gsocks.rotation.session.SessionExits`, as for the methods below."""
        member = self._roster.named(name)
        matches = member is not None and member.matches(self._request.selector)
        return member if matches else None

    def is_available(self, exit_: Member, /) -> bool:
        return exit_ is self._pending or self._roster.may_use(
            exit_, self._request, self._excluded, self._now
        )

    def winner(
        self,
        key: SessionKey,
        generation: int,
        /,
        *,
        like: Like | None = None,
        but: str | None = None,
        away_from: str | None = None,
    ) -> Member | None:
        other = None if but is None else self._roster.named(but)
        excluded = self._excluded if other is None else {*self._excluded, other}
        if away_from is not None:
            excluded = {*excluded, *islice(self._roster.addresses.sharing(away_from), FEW)}
        return self._roster.winner(key, generation, self._request, excluded, self._now, like)

    def beside(self, address: str, key: SessionKey, generation: int, /) -> Member | None:
        fit = self._roster.beside(address, self._request, self._excluded, self._now)
        return winner(key, generation, fit) if fit else None

    def any_winner(self, key: SessionKey, generation: int, /) -> Member:  # noqa: ARG002
        return self._roster.first(self._request)
