"""What changes is an event, which a dashboard can follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.events import EVENTS, KINDS, Event
from gsocks.request import ExitSelector
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from gsocks.rotation.session import ListedExits
from tests.support.rosters import UnusedExit

pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture
def group() -> ExitGroup:
    return ExitGroup([Offer(UnusedExit(name), name=name) for name in "ab"], ALLOW_ALL)


class News:
    """What has been noted since the test began."""

    def __init__(self) -> None:
        self._number = EVENTS.number

    def __iter__(self) -> Iterator[Event]:
        return iter(EVENTS.since(self._number))

    def told(self) -> list[tuple[str, str, str, str]]:
        return [(each.kind, each.exit, each.subject, each.text) for each in self]


@pytest.fixture
def news() -> News:
    return News()


def test_commands_are_events(group: ExitGroup, news: News) -> None:
    group.ban("a", 600)
    group.ban("a", 60, "shop.example")
    group.unban("a")
    group.unban("a", "shop.example")
    group.drain("b")
    group.drain("b", draining=False)
    assert news.told() == [
        ("banned", "a", "", "banned for 600 s"),
        ("banned", "a", "shop.example", "banned for 60 s for shop.example"),
        ("unbanned", "a", "", "unbanned"),
        ("unbanned", "a", "shop.example", "unbanned for shop.example"),
        ("drained", "b", "", "draining"),
        ("undrained", "b", "", "draining stopped"),
    ]
    assert {each.kind for each in news} <= set(KINDS)


def test_an_ejection_is_an_event(group: ExitGroup, news: News) -> None:
    for _ in range(3):
        group.report("a", False, "shop.example")
    assert news.told() == [("ejected", "a", "shop.example", "ejected for shop.example: reported")]


def test_a_session_that_moves_is_an_event(group: ExitGroup, news: News) -> None:
    members = list(group.roster)
    selector = ExitSelector(session="cart")
    key = ("ann", "cart")
    for only in members:
        exits = ListedExits(selector, [only], [only])
        group.sessions.choose(key, selector, exits, 1.0)
        group.sessions.served(key, only.name)
        group.sessions.rotate(key, 2.0)
    (moved,) = news
    assert (moved.kind, moved.exit) == ("moved", "b")
    assert "cart" in moved.subject
    assert moved.text == "moves from exit a to b: a rotation was requested"
