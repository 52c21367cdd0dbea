"""A long link of bytes, where packets can't be had: a relay that hands everything on later.

    python -m bench.link.relay PORT SECONDS    prints the two addresses and its port; until killed

The kernel completes a connection to the relay at once, where on a real link its client would wait
for a round trip before it could say anything.  So the first bytes are held back by a round trip
more: the same moment for every client that waits for its connection before it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

HOST = "127.0.0.1"
_CHUNK = 65536


async def carry(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float, not_before: float
) -> None:
    """Hand on what comes from ``source`` after ``delay`` seconds, its end too."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while True:
            data = await source.read(_CHUNK)
            hand_on = partial(sink.write, data) if data else sink.close
            loop.call_at(max(loop.time(), not_before) + delay, hand_on)
            if not data:
                return


async def serve(port: int, delay: float) -> None:
    """Relay to ``port`` for ever."""

    async def accepted(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection(HOST, port)
        opened = asyncio.get_running_loop().time() + 2 * delay
        await asyncio.gather(carry(near, to_far, delay, opened), carry(far, to_near, delay, opened))

    server = await asyncio.start_server(accepted, HOST, 0)
    print(HOST, *server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


def main() -> None:
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))


if __name__ == "__main__":
    main()
