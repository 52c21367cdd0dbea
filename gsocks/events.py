"""What has changed lately in this process: ejections, moves of sessions, reloads, bans.

A bounded ring that a reader can follow.  Modules tell it what happens with :func:`note`; it costs
one place in the ring, and nothing waits for a reader.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

#: events that are remembered, of all kinds together
MAX_EVENTS = 1000

#: characters of an event's texts: names of sessions and hosts are a client's
MAX_TEXT = 300

#: what an event may be
KINDS = (
    "ejected",
    "down",
    "up",
    "banned",
    "unbanned",
    "drained",
    "undrained",
    "moved",
    "exits",
    "reloaded",
    "not_reloaded",
)


class Event(NamedTuple):
    """Something that has changed."""

    #: counts up in each process, from 1 on
    number: int
    #: seconds of the wall clock
    time: float
    #: one of :data:`KINDS`
    kind: str
    #: the exit's name; empty if it concerns none
    exit: str
    #: what it is about: a session with its user, or a domain; empty if there is none
    subject: str
    #: a line in words, without secrets
    text: str


class Events:
    """The latest events."""

    def __init__(self, most: int = MAX_EVENTS) -> None:
        self._ring: deque[Event] = deque(maxlen=most)
        self._number = 0

    def __repr__(self) -> str:
        return f"<Events {len(self._ring)}, the latest is {self._number}>"

    @property
    def number(self) -> int:
        """That of the latest event; 0 if there was none."""
        return self._number

    def note(self, kind: str, text: str, *, exit: str = "", subject: str = "") -> None:  # noqa: A002
        """Remember that something has changed.  Never blocks."""
        self._number += 1
        self._ring.append(
            Event(self._number, time.time(), kind, exit, subject[:MAX_TEXT], text[:MAX_TEXT])
        )

    def since(self, number: int = 0, most: int = MAX_EVENTS) -> list[Event]:
        """The latest events behind ``number``, the oldest first, ``most`` at most.

        To follow the ring, ask again with the number of the last event that was returned.
        """
        found: list[Event] = []
        for event in reversed(self._ring):
            if event.number <= number or len(found) >= most:
                break
            found.append(event)
        return found[::-1]


#: those of this process
EVENTS = Events()

note = EVENTS.note
