"""Real proxies that go by the URL of each request: one connection for any number of sites."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from gevent.socket import socket

from gsocks.exits.absolute import HttpForwardExit
from tests.support import needs
from tests.support.engine import eventually, serving
from tests.support.forwarding import Place
from tests.support.real_exits import EXITS, running
from tests.support.web import Talk, ok

pytestmark = pytest.mark.usefixtures("never_hangs")


def site(page: bytes) -> Callable[[socket], None]:
    def serve(sock: socket) -> None:
        talk = Talk(sock)
        with suppress(AssertionError, OSError):
            while True:
                talk.hear_until(b"\r\n\r\n")
                talk.say(ok(page))

    return serve


@pytest.mark.parametrize("name", ["squid", "apache"])
def test_a_real_proxy_that_goes_by_each_url_serves_many_sites_over_one_connection(
    name: str, tmp_path: Path
) -> None:
    needs.root()
    with ExitStack() as stack:
        url = stack.enter_context(running(EXITS[name], tmp_path / "exit"))
        place = Place(stack, url)
        pages = [b"a", b"b", b"c", b"d"]
        sites = [
            (f"http://{stack.enter_context(serving(site(page)))}/".encode(), page) for page in pages
        ]
        exit_: HttpForwardExit = next(iter(place.group.roster)).exit  # type: ignore[assignment]
        for at, page in sites:
            assert place.ask(at).body == page
        eventually(lambda: exit_.goes_by_each_url)
        assert place.ask(sites[0][0]).body == pages[0]  # whose connection is kept for any site
        kept, reused = place.group.kept.count(exit_), place.group.kept.reused
        for at, page in sites[1:] * 2:
            assert place.ask(at).body == page
        assert place.group.kept.count(exit_) == kept
        assert place.group.kept.reused == reused + 6
