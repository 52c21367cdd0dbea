"""The URL of the store that gateways share, and the messages that they tell each other there.

A URL that is read shows itself as one that reads the same but for the login, and what stands before
its ``@`` as a password stands in no complaint.  A message is read, or is a ValueError.
"""

from __future__ import annotations

from gsocks.config.store import StoreUrl
from gsocks.fleet.hybrid_clock import HybridClock
from gsocks.fleet.messages import decode, encode
from gsocks.messages import Mistake

#: what no word of gsocks has in it
MARK = "7f3a9c"

SEEDS = [
    b"redis://valkey",
    b"redis://gw:7f3a9c@10.0.0.7:7000/3",
    b"rediss://:7f3a9c@[::1]",
    b"unix:///run/valkey.sock?db=2",
    b"redis+sentinel://a,b:7,[::1]/main/1",
    b"redis+sentinel://gw:7f3a9c@a/main",
    b"rediss+cluster://gw:7f3a9c@a:1,b:2",
    b"redis://gw:7f3a9c@a:b:c",
    b"gw:7f3a9c@valkey",
    b'{"node":"0000000a","gateway":"gw","records":[["local","ban","e0","0","{}",1.5]]}',
    b'{"node":"0000000a","gateway":"gw","parts":{"member":{"gateway":"gw"}}}',
]
WORDS = [
    b"redis://",
    b"rediss://",
    b"unix://",
    b"+sentinel",
    b"+cluster",
    b"@",
    b":",
    b",",
    b"?db=",
]
WORDS += [b"7f3a9c", b"[::1]", b'"node":', b'"parts":', b"/main"]


def check(data: bytes) -> None:
    """Raises AssertionError for what must not be."""
    _check_url(data.decode("utf-8", "replace"))
    _check_message(data)
    HybridClock("0000000a").saw(data.decode("utf-8", "replace"))


def _check_url(text: str) -> None:
    is_secret = MARK in text.rpartition("@")[0] and MARK not in text.rpartition("@")[2]
    try:
        url = StoreUrl.parse(text)
    except Mistake as mistake:
        assert not is_secret or MARK not in str(mistake), mistake
        return
    again = StoreUrl.parse(str(url))
    for name in ("kind", "hosts", "path", "service", "database", "tls"):
        assert getattr(again, name) == getattr(url, name), (name, url)
    if (
        url.password is not None
        and MARK in url.password
        and is_secret
        and MARK not in (url.user or "")
    ):
        assert MARK not in f"{url} {url!r}", url


def _check_message(raw: bytes) -> None:
    try:
        news = decode(raw)
    except ValueError:
        return
    assert decode(encode(news)) == news
