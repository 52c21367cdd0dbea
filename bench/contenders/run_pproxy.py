"""pproxy's own command line, with the event loop that it expects to find.

It asks for the current event loop without having made one, which uvloop does not forgive, and
Python itself does not since 3.14.  With uvloop it is at its fastest, so that is how it runs here.
"""

from __future__ import annotations

import asyncio
import contextlib

from pproxy.server import main

with contextlib.suppress(ImportError):
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    # pproxy would install the policy once more, and so lose the loop
    uvloop.install = lambda: None
asyncio.set_event_loop(asyncio.new_event_loop())
main()
