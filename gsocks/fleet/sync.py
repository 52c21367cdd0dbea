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
from random import Random
from secrets import token_hex
from typing import NamedTuple

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
from gsocks.fleet.members import Members
from gsocks.fleet.messages import MAX_VALUE, News, Told, decode, encode
from gsocks.fleet.parts import Part
from gsocks.fleet.store import Command, Store
from gsocks.lru import LruCache
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry
from gsocks.turns import give_way

#: what it means that the store does not answer
ALONE = "this gateway goes on alone with what it knows"


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
    #: seconds without an own message, after which listening begins anew; the channel may be dead
    deaf = 5.0
    #: seconds until a store that does not answer is tried again
    backoff = Backoff(0.2, 1.0, jitter=(0.7, 1.0))
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
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._skewed = False

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
            wait = self.interval if not failures else self._pause(failures)
            is_asked = self._wake.wait(wait) or failures > 0
            if self._stopping.is_set():
                break
            if failures:  # no flood of attempts by those who want an answer
                gevent.sleep(self.backoff.bound(0))
            self._wake.clear()
            self._gather()
            failures = 0 if self._try_exchange(is_asked=is_asked) else failures + 1
        self._gather()

    def _pause(self, failures: int) -> float:
        return self.backoff.delay(failures - 1, self._random)

    def _leave(self) -> None:
        """The last exchange."""
        try:
            if self.is_in_touch:
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
            for key in keys:
                entry = kind.entry(key, clock)
                if entry is not None and len(entry.value) <= MAX_VALUE:
                    of = RecordId(section, name, entry.key)
                    known, value = self._known.peek(of), hash(entry.value)
                    # told again after a loss: no newer than it was
                    is_old = known is not None and known.value == value
                    stamp = known.stamp if is_old and known is not None else self._clock.now()
                    self._known[of] = _Known(stamp, value)
                    self._waiting[of] = Told(*of, stamp, entry.value, entry.expires)
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
        told = {name: part.told(now) for name, part in self._parts.items()}
        parts = {name: each for name, each in told.items() if each is not None}
        if not (always or records or operations or parts):
            return False
        wall = self._clock.wall()
        commands = [self._write(each, wall) for each in records]
        commands += [op.command for op in operations]
        commands.append(("GET", self._store.key("mark")))
        message = None
        if records or parts:
            message = encode(News(self.members.node, self._gateway, records, parts))
        self._began = now
        try:
            answers = self._store.exchange(commands, message)
        except BaseException:
            self._put_back(records)
            raise
        finally:
            self._began = float("inf")
        self._follow_clock()
        if self._mark and answers[-1] != self._mark:
            for part in self._parts.values():
                part.emptied(now)
        for operation, answer in zip(operations, answers[len(records) : -1], strict=True):
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

    def _oldest_waiting(self) -> list[tuple[RecordId, Told]]:
        found: list[tuple[RecordId, Told]] = []
        while len(found) < self.batch and (oldest := self._waiting.oldest()) is not None:
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
                self._mark = b"?"
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
                self._stopping.wait(self._pause(failures))

    def _listen_once(self) -> str | None:
        """Until the store does not answer, and why it does not; None: it is to begin anew."""
        try:
            self._store.subscribe()
            self._follow_clock()
            self._echo_at = time.monotonic()
            self._read_all()
            self._works("listening")
            self._synced.set()
            while not self._stopping.is_set() and not self._is_deaf():
                self._hear_all(self._store.receive(0.5))
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
        for found in self._store.read_all("r"):
            for name, text in found:
                section, _, rest = name.partition(":")
                kind, _, key = rest.partition(":")
                stamp = text[:SIZE].decode("ascii", "replace")
                value = text[SIZE:].decode("utf-8", "replace")
                self._merge(Told(section, kind, key, stamp, value, 0.0))
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
        now = time.monotonic()
        if "farewell" in news.parts:
            self.members.says_farewell(news.node)
            return
        for name, told in news.parts.items():
            part = self._parts.get(name)
            try:
                if part is not None:
                    part.heard(news.node, told, now)
            except (ValueError, MsgspecError) as error:
                log.debug("%s of %s: %s", name, news.node, error)

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
        self._troubles[doing] = why

    def _works(self, doing: str) -> None:
        if self._troubles.pop(doing, None) is not None and not self._troubles:
            log.info("%s: answers again", self._store.url)
