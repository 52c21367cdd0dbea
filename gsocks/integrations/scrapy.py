"""Scrapy by a gsocks port: a session and a country for each request, another exit after a ban.

    # settings.py
    DOWNLOADER_MIDDLEWARES = {"gsocks.integrations.scrapy.GsocksMiddleware": 745}
    GSOCKS_PROXY = "http://127.0.0.1:1080"        # with users: http://alice:password@127.0.0.1:1080
    GSOCKS_ADMIN = "http://127.0.0.1:9090"        # where bans are reported; left out: nowhere
    GSOCKS_TOKEN = "..."                          # what stands in admin.token

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

import json
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.http import Response


class GsocksMiddleware:
    """``meta["gsocks"]`` has any of ``session`` (letters, digits, ``_``), ``country``, ``tag``,
    ``exit`` and ``lifetime``.

    More settings: ``GSOCKS_BANNED``, the statuses by which a site says that it doesn't like an
    exit; ``GSOCKS_TRIES``, by how many exits such a page is tried.  A spider that sees a ban in the
    page itself (a captcha) yields ``banned(response.request)`` and no item.
    """

    def __init__(self, crawler: Crawler) -> None:
        settings = crawler.settings
        self._crawler = crawler
        self._proxy = urlsplit(settings.get("GSOCKS_PROXY", "http://127.0.0.1:1080"))
        self._admin = settings.get("GSOCKS_ADMIN")
        self._token = settings.get("GSOCKS_TOKEN", "")
        self._banned = {int(status) for status in settings.getlist("GSOCKS_BANNED", [403, 429])}
        self._tries = settings.getint("GSOCKS_TRIES", 3)
        # how often a session had to change its exit
        self._turns: dict[str, int] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> GsocksMiddleware:
        return cls(crawler)

    async def process_request(self, request: Request) -> None:
        if "proxy" in request.meta and request.meta["proxy"] is None:
            return  # to the admin, who is no site
        before = request.meta.pop("gsocks_banned", None)
        if before is not None and self._admin is not None:
            await self._report(before, urlsplit(request.url).hostname)
        selectors = dict(request.meta.get("gsocks", {}))
        session = selectors.get("session")
        selectors["session"] = uuid4().hex if session is None else self._name(session, before)
        request.meta["gsocks_session"] = selectors["session"]
        request.meta["proxy"] = self._with_user(selectors)

    def process_response(self, request: Request, response: Response) -> Request | Response:
        if response.status not in self._banned or request.meta.get("gsocks_try", 1) >= self._tries:
            return response
        return banned(request)

    def _name(self, session: str, before: str | None) -> str:
        """How gsocks is told the session: by another name it has another exit."""
        turn = self._turns.get(session, 0)
        # many requests of a session may be banned at one exit, and it moves once
        if before == _in_turn(session, turn):
            turn = self._turns[session] = turn + 1
        return _in_turn(session, turn)

    def _with_user(self, selectors: dict[str, Any]) -> str:
        words = [
            self._proxy.username or "",
            *(f"{key}-{value}" for key, value in selectors.items()),
        ]
        user = quote("-".join(word for word in words if word), safe="%")
        place = self._proxy.netloc.rpartition("@")[2]
        return f"{self._proxy.scheme}://{user}:{self._proxy.password or ''}@{place}"

    async def _report(self, session: str, domain: str | None) -> None:
        said = {"session": session, "domain": domain, "ok": False, "reason": "banned"}
        if self._proxy.username:
            said["user"] = unquote(self._proxy.username)
        await self._crawler.engine.download_async(
            Request(
                f"{self._admin}/v1/sessions/report",
                method="POST",
                body=json.dumps(said),
                headers={"Authorization": f"Bearer {self._token}"},
                meta={"proxy": None},
            )
        )


def banned(request: Request) -> Request:
    """The same request by another exit, for a page that wasn't one."""
    again = request.replace(dont_filter=True)
    for key in ("_auth_proxy", "download_latency", "proxy"):  # what was the first attempt's
        again.meta.pop(key, None)
    again.meta["gsocks_banned"] = again.meta.pop("gsocks_session")
    again.meta["gsocks_try"] = again.meta.get("gsocks_try", 1) + 1
    return again


def _in_turn(session: str, turn: int) -> str:
    return f"{session}.{turn}" if turn else session
