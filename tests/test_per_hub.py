"""One object for each hub."""

from __future__ import annotations

import gc
import weakref
from threading import Thread

import gevent

from gsocks.per_hub import PerHub


class Made:
    """An object that can be watched."""


def test_a_hub_has_the_same_object_each_time_and_another_thread_has_another_one() -> None:
    held = PerHub("test_each", Made)
    found: list[Made] = []

    def use() -> None:
        found.append(held.get())
        gevent.get_hub().destroy()

    thread = Thread(target=use)
    thread.start()
    thread.join()
    assert held.get() is held.get()
    assert held.get() is not found[0]


def test_the_object_ends_with_its_hub() -> None:
    held = PerHub("test_end", Made)
    watched: list[weakref.ref[Made]] = []

    def use() -> None:
        watched.append(weakref.ref(held.get()))
        gevent.get_hub().destroy()

    thread = Thread(target=use)
    thread.start()
    thread.join()
    gc.collect()
    assert watched[0]() is None
