"""Answers for as long as they say that they are good."""

from __future__ import annotations

import time
from collections.abc import Callable

from gsocks.dns_listener.wire import Answer, Key
from gsocks.lru import LruCache

#: bytes of an answer from which on it is not kept, so that so many take 16 MiB at most
MAX_KEPT = 4096


class Cache:
    """The answers to at most ``size`` questions; the least recently asked one is evicted.

    ``now``: monotonic seconds.
    """

    __slots__ = ("_answers", "_now")

    def __init__(self, size: int, now: Callable[[], float] = time.monotonic) -> None:
        #: each with the time at which it came
        self._answers: LruCache[Key, tuple[Answer, float]] = LruCache(size)
        self._now = now

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, key: Key, answer: Answer) -> None:
        """Keep ``answer``, which has just come, if it may be kept."""
        if answer.lifetime and len(answer.message) <= MAX_KEPT:
            self._answers[key] = answer, self._now()

    def get(self, key: Key) -> tuple[Answer, int] | None:
        """The answer to ``key``, and how many seconds old it is; None: it has to be asked for."""
        found = self._answers.get(key)
        if found is None:
            return None
        answer, came = found
        age = int(self._now() - came)
        if age >= answer.lifetime:
            self._answers.discard(key)
            return None
        return answer, age
