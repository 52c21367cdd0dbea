"""What a client says to get to the target, as a generator that knows no socket.

It yields what to send and how many bytes are due as an answer, and is sent that answer.  So the
same words serve one blocking client (:func:`hold`) and hundreds at once (crowd.py).
"""

from __future__ import annotations

import socket
from collections.abc import Generator

from bench.load.route import Route
from bench.processes import Failed

Conversation = Generator[tuple[bytes, int], bytes, None]

_GREETING = b"\x05\x01\x00"
_GREETED = b"\x05\x00"
_SUCCEEDED = b"\x05\x00\x00\x01"
_REPLY_SIZE = 10


def ask(route: Route, message: bytes, answer_size: int) -> Conversation:
    """Reach the target and send it a message, to which it answers with so many bytes.

    Each step waits for the answer to the one before, as all clients do.
    """
    if route.proxy is not None:
        if (yield _GREETING, len(_GREETED)) != _GREETED:
            raise Failed("refused a SOCKS5 client without credentials")
        reply = yield route.request(), _REPLY_SIZE
        if not reply.startswith(_SUCCEEDED):
            raise Failed(f"did not connect (SOCKS5 reply {reply.hex()})")
    yield message, answer_size


def hold(sock: socket.socket, conversation: Conversation) -> None:
    """One conversation on a blocking socket."""
    for_next = next(conversation)
    try:
        while True:
            words, due = for_next
            sock.sendall(words)
            for_next = conversation.send(receive_exactly(sock, due))
    except StopIteration:
        pass
    except TimeoutError:
        raise Failed("did not answer in time") from None
    except OSError as error:
        raise Failed(f"broke the connection ({error})") from None


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes.  Raises Failed if there are fewer."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise Failed("closed the connection early")
        data += more
    return data
