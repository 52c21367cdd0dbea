"""Many conversations, so many at once, from one thread."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from bench.load.conversation import Conversation
from bench.load.route import PATIENCE, Route
from bench.processes import Failed

#: seconds for one crowd; who needs more is not worth waiting for
LONGEST = 60.0


class _Talk:
    """One conversation under way."""

    __slots__ = ("conversation", "due", "heard", "sock")

    def __init__(self, sock: socket.socket, conversation: Conversation) -> None:
        self.sock = sock
        self.conversation = conversation
        self.heard = b""
        words, self.due = next(conversation)
        sock.send(words)  # a few bytes: they always fit

    def go_on(self) -> bool:
        """Something can be read.  True: the conversation is over."""
        data = self.sock.recv(self.due - len(self.heard))
        if not data and self.due:
            raise Failed("closed the connection early")
        self.heard += data
        if len(self.heard) < self.due:
            return False
        try:
            words, self.due = self.conversation.send(self.heard)
        except StopIteration:
            return True
        self.heard = b""
        self.sock.send(words)
        return False


def talk(
    route: Route,
    conversation: Callable[[Route], Conversation],
    count: int,
    *,
    at_once: int,
    keep: list[socket.socket] | None = None,
) -> float:
    """Hold ``count`` conversations, each on a new connection; returns the seconds it took.

    Connections are closed after their conversation, or put into ``keep``.  Raises Failed.
    """
    poll = select.epoll()
    talks: dict[int, _Talk] = {}
    begun = over = 0
    started = time.perf_counter()
    try:
        while over < count:
            while begun < count and len(talks) < at_once:
                fresh = _Talk(route.connect(), conversation(route))
                talks[fresh.sock.fileno()] = fresh
                poll.register(fresh.sock.fileno(), select.EPOLLIN)
                begun += 1
            ready = poll.poll(PATIENCE)
            if not ready:
                raise Failed(f"stopped answering after {over} of {count} connections")
            if time.perf_counter() - started > LONGEST:
                raise Failed(f"served {over} of {count} connections in {LONGEST:g} s")
            for descriptor, _ in ready:
                current = talks[descriptor]
                if not current.go_on():
                    continue
                del talks[descriptor]
                poll.unregister(descriptor)
                if keep is None:
                    current.sock.close()
                else:
                    keep.append(current.sock)
                over += 1
    except OSError as error:
        raise Failed(f"broke a connection after {over} of {count} ({error})") from None
    finally:
        poll.close()
        for unfinished in talks.values():
            unfinished.sock.close()
    return time.perf_counter() - started
