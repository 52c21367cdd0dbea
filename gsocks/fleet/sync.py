"""The exchange between this process's tables, the store and the other gateways.

Two greenlets.  One gathers what has changed, stamps it and writes it, up to five times a second:
records into the store, and the same records with what each part tells in one message to all others.
The other one listens; whenever it begins to, and so after each outage, it reads all records too.

Of two values of a record the one with the later stamp counts, here and in the store.  While the
store does not answer, what changes is stamped and kept, of each thing the newest value only; it is
written when the store is back.  A store that has lost everything is noticed by a mark that it has
lost too, and all is told again with the stamps that it had.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from random import Random
from secrets import token_hex
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from msgspec import MsgspecError
from msgspec.structs import replace

from gsocks.backoff import Backoff
from gsocks.errors import StoreFailed
from gsocks.fleet import scripts
from gsocks.fleet.hybrid_clock import SIZE, HybridClock
from gsocks.fleet.kinds import Kind
from gsocks.fleet.log import log
from gsocks.fleet.members import MAX_MEMBERS, Members
from gsocks.fleet.messages import MAX_VALUE, News, Told, decode, encode
from gsocks.fleet.parts import Part
from gsocks.fleet.settling import Settling
from gsocks.fleet.store import Command, Store
from gsocks.lru import LruCache
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry
from gsocks.turns import give_way

#: what it means that the store does not answer
ALONE = "this gateway goes on alone with what it knows"

#: tells, as a part does, that the store has lost what it had
#: the mark of a store that has lost all, until it is read
_UNKNOWN = b"?"

_LOSS = "loss"

#: things that are looked at before others have their turn, if it is due
_AT_ONCE = 8


class RecordId(NamedTuple):
    """What a record is of."""

    section: str
    kind: str
    key: str


class _Known(NamedTuple):
    """The latest value of a record that was told or heard."""

    stamp: str
    value: int


class FleetSync:
    """Shares the kinds and parts that it is given, as one of ``members``."""

    #: seconds after which what there is to say is exchanged
    interval = 0.2
    #: records that are written at a time
    batch = 500
    #: records that wait while the store is away, and those whose stamps are remembered; beyond,
    #: those that changed least recently are forgotten
    max_waiting = 100_000
    max_known = 200_000
    #: characters of the records' values in one message, but for the last of them
    max_told = 262_144
    #: messages with events of this process that the store keeps for those that can't listen for a
    #: time, and milliseconds for which it does
    max_events = 100
    events_last = 300_000
    #: seconds without an own message, after which listening begins anew; the channel may be dead
    deaf = 5.0
    #: seconds until a store that does not answer is tried again, and between two attempts at
    #: least.  The longest pause, the store's timeout, which an attempt takes that began just
    #: before it was back, and its settling are less than two seconds together
    backoff = Backoff(0.2, 0.3, jitter=(0.7, 1.0))
    least_pause = 0.1
    #: seconds after which a store that has not answered yet is not waited for
    prompt = 0.5
    #: seconds that a start waits for the store, and a stop
    patience = 1.5

    def __init__(self, store: Store, members: Members, clock: HybridClock, gateway: str) -> None:
        self._store = store
        self.members = members
        self._clock = clock
        self._gateway = gateway
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._parts: dict[str, Part] = {}
        self._waiting: LruCache[RecordId, Told] = LruCache(self.max_waiting)
        self._known: LruCache[RecordId, _Known] = LruCache(self.max_known)
        self._random = Random()  # noqa: S311 - predicting it gains nothing
        #: what the store has while it has lost nothing
        self._mark = b""
        #: why it does not answer, by the greenlet that has found it; empty: it does
        self._troubles: dict[str, str] = {}
        self._wake = Event()
        self._synced = Event()
        self._stopping = Event()
        #: once an exchange has ended, whether by success or failure
        self._exchanged = Event()
        #: when the exchange began that goes on; infinity: none does
        self._began = float("inf")
        self._echo_at = 0.0
        #: parts and events that were not told, since an exchange has failed
        self._untold: News | None = None
        #: whether the others are to be told that the store has lost what it had
        self._tells_loss = False
        #: the number of the events that were told last; by nodes, of those that were heard last
        self._number = 0
        self._numbers: LruCache[str, int] = LruCache(MAX_MEMBERS)
        #: ends the pause before the next attempt to listen
        self._retry = Event()
        #: when the outage of the store was found that goes on, or that was the last one
        self._lost_at = float("-inf")
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._skewed = False
        self.settling = Settling(
            # of each loss another set: a name that comes late tells nothing of the next one
            members,
            lambda: store.key("told", self._mark.decode()),
            self._is_untold,
            self._wake.set,
        )

    def __repr__(self) -> str:
        state = "; ".join(self._troubles.values()) or "in touch"
        return f"<FleetSync {self._store.url} {state}>"

    def share(self, section: str, kinds: Sequence[Kind]) -> None:
        """Share these things under the name of a section.  Before :meth:`start`."""
        for each in kinds:
            self._kinds[section, each.kind] = each

    def add(self, part: Part) -> None:
        """Have ``part`` take part.  Before :meth:`start`."""
        self._parts[part.name] = part

    @property
    def is_in_touch(self) -> bool:
        """Whether the store answers, as far as is known."""
        return not self._troubles

    @property
    def is_prompt(self) -> bool:
        """Whether the store answers, and has not been silent just now."""
        return self.is_in_touch and time.monotonic() - self._began < self.prompt

    @property
    def state(self) -> str:
        """In words, for people: ``ok``, or why the store does not answer."""
        return "; ".join(dict.fromkeys(self._troubles.values())) or "ok"

    def start(self) -> None:
        """Read what the others know, and begin.  Blocks for :attr:`patience` at most."""
        self.add(self.members)
        self.add(self.settling)
        listening = gevent.spawn(self._listen)
        self._synced.wait(self.patience)
        self._greenlets = [listening, gevent.spawn(self._run)]
        self._wake.set()
        self._exchanged.wait(self.patience)

    def close(self) -> None:
        """Tell what has changed last, and leave.  Blocks for :attr:`patience` at most."""
        if not self._greenlets or self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        self._retry.set()
        gevent.joinall(self._greenlets, timeout=self.patience)
        leaving = gevent.spawn(self._leave)
        leaving.join(self.patience)
        gevent.killall([leaving, *self._greenlets], block=False)

    def gone(self, node: str) -> None:
        """Another process is not there any more."""
        for part in self._parts.values():
            part.gone(node)

    def soon(self) -> None:
        """Exchange at once, as after a command of an operator."""
        self._wake.set()

    def wait(self, seconds: float) -> bool:
        """Have the store asked at once; whether it has answered within ``seconds``."""
        self._exchanged.clear()
        self._wake.set()
        return self._exchanged.wait(seconds) and self.is_in_touch

    # --- writing ----------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            wait = self.interval
            if self.settling.is_on(time.monotonic()):
                wait = min(wait, self.settling.pause)
            if failures:  # no flood of attempts by those who want an answer
                wait = max(0.0, self._pause(failures) - self.least_pause)
                self._stopping.wait(self.least_pause)
            is_asked = self._wake.wait(wait) or failures > 0
            if self._stopping.is_set():
                break
            self._wake.clear()
            self._gather()
            failures = 0 if self._try_exchange(is_asked=is_asked) else failures + 1
        self._gather()

    def _is_untold(self) -> bool:
        """Whether shares have still to be told, or it is not known yet which loss it is."""
        return self._mark == _UNKNOWN or any(part.is_untold() for part in self._parts.values())

    def _pause(self, failures: int) -> float:
        return self.backoff.delay(failures - 1, self._random)

    def _leave(self) -> None:
        """The last exchange."""
        try:
            if self.is_in_touch:
                self._exchange(always=False)
                while len(self._waiting):
                    self._exchange()
                news = News(self.members.node, self._gateway, parts={"farewell": True})
                commands = [each for part in self._parts.values() for each in part.farewell()]
                self._store.exchange(commands, encode(news))
        except StoreFailed as error:
            log.debug("could not take leave: %s", error)
        self._store.close()

    def _gather(self) -> None:
        """Stamp what has changed."""
        clock = self._now()
        for (section, name), kind in self._kinds.items():
            keys = list(kind.changed)
            kind.changed.clear()
            for number, key in enumerate(keys):
                entry = kind.entry(key, clock)
                if entry is not None and len(entry.value) <= MAX_VALUE:
                    of = RecordId(section, name, entry.key)
                    known, value = self._known.peek(of), hash(entry.value)
                    # told again after a loss: no newer than it was
                    is_old = known is not None and known.value == value
                    stamp = known.stamp if is_old and known is not None else self._clock.now()
                    self._known[of] = _Known(stamp, value)
                    self._waiting[of] = Told(*of, stamp, entry.value, entry.expires)
                if number % _AT_ONCE == 0:
                    give_way()

    def _now(self) -> Clock:
        """This moment, by the store's clock."""
        return Clock(time.monotonic(), self._clock.wall())

    def _try_exchange(self, *, is_asked: bool) -> bool:
        try:
            if not self._exchange(always=is_asked):
                return True
            while len(self._waiting) and not self._stopping.is_set():
                self._exchange()
        except StoreFailed as error:
            self._failed("writing", str(error))
            now = time.monotonic()
            for part in self._parts.values():
                part.lost(now)
            self._exchanged.set()
            return False
        self._works("writing")
        self._exchanged.set()
        return True

    def _exchange(self, *, always: bool = True) -> bool:
        """Whether there was anything to say, or it is to be ``always`` done.

        Once a second there is: that this process lives.  Raises StoreFailed; then nothing is lost.
        """
        if self._store.offset is None:
            self._store.exchange([])
        self._follow_clock()
        now = time.monotonic()
        records = [told for _, told in self._oldest_waiting()]
        operations = [op for part in self._parts.values() for op in part.operations(now)]
        news = self._news(records, now)
        if not (always or operations or news):
            return False
        wall = self._clock.wall()
        commands = [self._write(each, wall) for each in records]
        commands += [op.command for op in operations]
        commands += [] if news is None else self._keep_events(news)
        commands.append(("GET", self._store.key("mark")))
        self._began = now
        try:
            answers = self._store.exchange(commands, None if news is None else encode(news))
        except BaseException:
            self._put_back(records)
            raise
        finally:
            self._began = float("inf")
        self._untold = None
        self._follow_clock()
        if self._mark and answers[-1] != self._mark:
            found = time.monotonic()
            for part in self._parts.values():
                part.emptied(found)
        answers_to_parts = answers[len(records) : len(records) + len(operations)]
        for operation, answer in zip(operations, answers_to_parts, strict=True):
            if answer is not None:
                operation.answered(answer)
        self._check_mark(answers[-1])
        now = time.monotonic()
        for part in self._parts.values():
            part.exchanged(now)
        return True

    def _follow_clock(self) -> None:
        """Go by the store's clock, and stamp what was stamped by a wrong one."""
        offset = self._store.offset
        if offset is None or not self._clock.follow(offset):
            return
        for of, told in list(self._waiting.items()):
            stamp = self._clock.now()
            self._waiting[of] = replace(told, stamp=stamp)
            self._known[of] = _Known(stamp, hash(told.value))

    def _news(self, records: list[Told], now: float) -> News | None:
        """The message of an exchange; None: there is nothing to tell.

        What could not be told is told again as it was; meanwhile the parts keep what is new.
        """
        if self._untold is None:
            told = News(self.members.node, self._gateway)
            if self._tells_loss:
                told.parts[_LOSS], self._tells_loss = True, False
            for name, part in self._parts.items():
                if (each := part.told(now)) is not None:
                    (told.events if part.has_events else told.parts)[name] = each
            if told.events:
                self._number += 1
                told.number = self._number
            self._untold = told if told.parts or told.events else None
        if self._untold is not None:
            return replace(self._untold, records=records)
        return News(self.members.node, self._gateway, records) if records else None

    def _keep_events(self, news: News) -> list[Command]:
        """Have the store keep what has happened for those that don't hear it."""
        if not news.events:
            return []
        key = self._store.key("events", news.node)
        return [
            ("RPUSH", key, encode(replace(news, records=[], parts={}))),
            ("LTRIM", key, -self.max_events, -1),
            ("PEXPIRE", key, self.events_last),
        ]

    def _oldest_waiting(self) -> list[tuple[RecordId, Told]]:
        found: list[tuple[RecordId, Told]] = []
        size = 0
        while len(found) < self.batch and size < self.max_told:
            if (oldest := self._waiting.oldest()) is None:
                break
            size += len(oldest[1].value)
            del self._waiting[oldest[0]]
            found.append(oldest)
        return found

    def _put_back(self, records: Iterable[Told]) -> None:
        for each in records:
            of = RecordId(each.section, each.kind, each.key)
            if of not in self._waiting:  # else it has changed meanwhile
                self._waiting[of] = each

    def _write(self, told: Told, wall: float) -> Command:
        key = self._store.key("r", told.section, told.kind, told.key)
        lasts = max(1, int((told.expires - wall) * 1000))
        return ("EVAL", scripts.WRITE, 1, key, told.stamp + told.value, lasts)

    def _check_mark(self, mark: object) -> None:
        """Tell all again to a store that has lost what it had."""
        if isinstance(mark, bytes) and mark and mark == self._mark:
            return
        if isinstance(mark, bytes) and mark:
            has_lost, self._mark = bool(self._mark), mark
        else:
            has_lost, new = bool(self._mark), token_hex(8).encode()
            # of several that notice it, one sets the mark; all read it with the next exchange
            self._store.exchange([("SET", self._store.key("mark"), new, "NX")])
            if has_lost:  # until the next exchange it is not known which mark it is
                self._mark, self._tells_loss = _UNKNOWN, True
                self._wake.set()
                return
        if has_lost:
            log.warning("%s: has lost what it had: all is written again", self._store.url)
            for kind in self._kinds.values():
                kind.forget_told()
                kind.changed.update(kind.keys())
            self._wake.set()

    # --- listening --------------------------------------------------------------------------

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            why = self._listen_once()
            if why is None:
                failures = 0
            else:
                self._failed("listening", why)
                self._wake.set()  # so that the parts hear at once if it is away altogether
                failures += 1
                self._retry.wait(self._pause(failures))
                self._retry.clear()

    def _listen_once(self) -> str | None:
        """Until the store does not answer, and why it does not; None: it is to begin anew."""
        began = time.monotonic()
        try:
            self._store.subscribe()
            self._follow_clock()
            self._read_all()
            self._echo_at = time.monotonic()
            self._works("listening")
            self._synced.set()
            # the connection of an outage may be dead
            while not (self._stopping.is_set() or self._is_deaf() or began < self._lost_at):
                self._hear_all(self._store.receive(0.5))
            if self._troubles:  # nothing is heard until it listens again
                self._troubles["listening"] = self.state
        except StoreFailed as error:
            return str(error)
        return None

    def _is_deaf(self) -> bool:
        """Whether even the own messages have not come for a time, while they were sent."""
        return time.monotonic() - self._echo_at > self.deaf and "writing" not in self._troubles

    def _read_all(self) -> None:
        now = time.monotonic()
        for found in self._store.read_all("member"):
            for node, text in found:
                with suppress(ValueError, MsgspecError):  # of another version
                    self.members.found(node, text, now)
        self._read_events()  # before any that come later
        for found in self._store.read_all("r"):
            for name, text in found:
                section, _, rest = name.partition(":")
                kind, _, key = rest.partition(":")
                stamp = text[:SIZE].decode("ascii", "replace")
                value = text[SIZE:].decode("utf-8", "replace")
                self._merge(Told(section, kind, key, stamp, value, 0.0))
                give_way()
            self._hear_all(self._store.receive(0.0))

    def _read_events(self) -> None:
        """What has happened while this process could not listen.  At the start that is of no
        concern to it."""
        nodes = list(self.members.others)
        lists = self._store.read_lists([self._store.key("events", node) for node in nodes])
        for raw in chain.from_iterable(lists):
            with suppress(ValueError, MsgspecError):
                news = decode(raw)
                if self._synced.is_set():
                    self._hear_events(news)
                else:
                    self._numbers[news.node] = news.number
            give_way()

    def _hear_all(self, messages: Iterable[bytes]) -> None:
        for raw in messages:
            try:
                news = decode(raw)
            except (ValueError, MsgspecError) as error:
                log.debug("a message can't be read: %s", error)
                continue
            if news.node == self.members.node:
                self._echo_at = time.monotonic()
                continue
            for told in news.records:
                self._merge(told)
                give_way()
            self._hear_parts(news)
            give_way()

    def _hear_parts(self, news: News) -> None:
        self._hear_events(news)
        if "farewell" in news.parts:
            self.members.says_farewell(news.node)
            return
        if _LOSS in news.parts:
            self._wake.set()  # and look at the mark
        for name, told in news.parts.items():
            self._hear_part(news.node, name, told)

    def _hear_events(self, news: News) -> None:
        """What has happened, unless it was heard already."""
        if news.number <= (self._numbers.peek(news.node) or 0):
            return
        self._numbers[news.node] = news.number
        for name, told in news.events.items():
            self._hear_part(news.node, name, told)

    def _hear_part(self, node: str, name: str, told: Any) -> None:
        part = self._parts.get(name)
        try:
            if part is not None:
                part.heard(node, told, time.monotonic())
        except (ValueError, MsgspecError) as error:
            log.debug("%s of %s: %s", name, node, error)

    def _merge(self, told: Told) -> None:
        """Take a record, unless what is known of it is newer."""
        of = RecordId(told.section, told.kind, told.key)
        kind = self._kinds.get(of[:2])
        if kind is None:
            return  # of a section or a version that is not run here
        if not self._clock.saw(told.stamp):
            if not self._skewed:
                log.warning(
                    "a gateway's clock is ahead by more than a minute: its news don't count"
                )
            self._skewed = True
            return
        known = self._known.peek(of)
        if known is not None and known.stamp >= told.stamp:
            return
        self._known[of] = _Known(told.stamp, hash(told.value))
        self._waiting.discard(of)
        try:
            kind.restore(Entry(told.key, told.value, 0.0, told.expires), self._now())
        except (ValueError, MsgspecError) as error:
            log.debug("%s %s: %s", told.kind, told.key, error)

    # --- the state of the store ---------------------------------------------------------------

    def _failed(self, doing: str, why: str) -> None:
        if not self._troubles:
            log.error("%s (%s)", why, ALONE)
            self._lost_at = time.monotonic()
        self._troubles[doing] = why

    def _works(self, doing: str) -> None:
        if self._troubles.pop(doing, None) is None:
            return
        if not self._troubles:
            log.info("%s: answers again", self._store.url)
        elif doing == "writing":  # the other one need not wait any longer
            self._retry.set()
        else:
            self._wake.set()
