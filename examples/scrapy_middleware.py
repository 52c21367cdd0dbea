"""Scrapy by a gsocks port: a session and a country for each request, another exit after a ban.

    # settings.py
    DOWNLOADER_MIDDLEWARES = {"myproject.scrapy_middleware.GsocksMiddleware": 745}
    GSOCKS_PROXY = "http://127.0.0.1:1080"        # with users: http://alice:password@127.0.0.1:1080

    # in a spider
    yield Request(url)                                            # any exit, another each time
    yield Request(url, meta={"gsocks": {"session": "cart17", "country": "de"}})

Scrapy runs on Twisted, whose loop is not gevent's: so it talks to gsocks's port, and says what it
wants of the exit in the user name.  745 is before Scrapy's own HttpProxyMiddleware (750), which
makes the credentials in the proxy's URL a header.

A request without a session gets one of its own.  Without that, Scrapy would keep its tunnels to
an https site for the next requests, and with each tunnel its exit.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.http import Response


class GsocksMiddleware:
    """``meta["gsocks"]`` has any of ``session`` (letters, digits, ``_``), ``country``, ``tag``,
    ``exit`` and ``lifetime``.

    Settings: ``GSOCKS_PROXY``; ``GSOCKS_BANNED``, the statuses by which a site says that it
    doesn't like an exit; ``GSOCKS_TRIES``, by how many exits such a page is tried.  A spider that
    sees a ban in the page itself (a captcha) yields ``banned(response.request)`` and no item.
    """

    def __init__(self, proxy: str, banned: list[int], tries: int) -> None:
        self._proxy = urlsplit(proxy)
        self._banned = set(banned)
        self._tries = tries
        # how often a session had to change its exit
        self._turns: dict[str, int] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> GsocksMiddleware:
        settings = crawler.settings
        return cls(
            settings.get("GSOCKS_PROXY", "http://127.0.0.1:1080"),
            [int(status) for status in settings.getlist("GSOCKS_BANNED", [403, 429])],
            settings.getint("GSOCKS_TRIES", 3),
        )

    def process_request(self, request: Request) -> None:
        wishes = dict(request.meta.get("gsocks", {}))
        session = wishes.get("session")
        if session is None:
            wishes["session"] = uuid4().hex
        else:
            turn = self._turn(session, request.meta.pop("gsocks_banned", None))
            request.meta["gsocks_turn"] = turn
            # the name of a session decides its exit: by another name it has another one
            wishes["session"] = f"{session}.{turn}" if turn else session
        request.meta["proxy"] = self._with_user(wishes)

    def process_response(self, request: Request, response: Response) -> Request | Response:
        if response.status not in self._banned or request.meta.get("gsocks_try", 1) >= self._tries:
            return response
        return banned(request)

    def _turn(self, session: str, banned_in: int | None) -> int:
        turn = self._turns.get(session, 0)
        if turn == banned_in:  # and not one before: many requests may be banned at one exit
            turn = self._turns[session] = turn + 1
        return turn

    def _with_user(self, wishes: dict[str, Any]) -> str:
        words = [self._proxy.username or "", *(f"{key}-{value}" for key, value in wishes.items())]
        user = quote("-".join(word for word in words if word), safe="")
        place = self._proxy.netloc.rpartition("@")[2]
        return f"{self._proxy.scheme}://{user}:{self._proxy.password or ''}@{place}"


def banned(request: Request) -> Request:
    """The same request by another exit, for a page that wasn't one."""
    again = request.replace(dont_filter=True)
    for key in ("_auth_proxy", "download_latency"):  # Scrapy's own, of the first attempt
        again.meta.pop(key, None)
    again.meta["gsocks_banned"] = again.meta.pop("gsocks_turn", None)
    again.meta["gsocks_try"] = again.meta.get("gsocks_try", 1) + 1
    return again
