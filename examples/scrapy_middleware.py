"""Scrapy through a gsocks port, by the middleware of gsocks (extra ``scrapy``)."""

from gsocks.integrations.scrapy import GsocksMiddleware, banned

__all__ = ["GsocksMiddleware", "banned"]
